"""The rows that dataset inference reads: any table of pictures and expressions, here or on the Hub."""

from hivg_hf.data.readers.shard_files import PICTURE, Chunk, Part, ShardFiles
from hivg_hf.hub.errors import hub_errors

__all__ = ["PICTURE", "Chunk", "DatasetInput", "Part"]


class DatasetInput(ShardFiles):
    """`ShardFiles` whose refusals of the Hub are one sentence each."""

    def _hub_files(self) -> list[str]:
        with hub_errors(self.source, uploading=False):
            return super()._hub_files()
