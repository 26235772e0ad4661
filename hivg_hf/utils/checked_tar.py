"""Tars from strangers: whatever a header says, reading ends, and what is wrong is `tarfile.TarError`.

Python's own reader answers damaged headers with any exception, or takes them for the end; it steps back where a size
is negative, and then reads the same members for ever; and it makes room for holes of any size (sparse files).
"""

import errno
import tarfile

_END_BYTES = 2**20  # looked at behind the end mark; writers fill up a block of some KB with zeros


class CheckedTar(tarfile.TarFile):
    """A tar whose headers are not trusted. `open` as of `tarfile.TarFile`."""

    def next(self) -> tarfile.TarInfo | None:
        """The next member; None after the last.

        Raises:
            tarfile.TarError: its header is damaged, or it is a file with holes.
        """
        try:
            member = super().next()
        except tarfile.TarError:
            raise
        except (ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise tarfile.ReadError(f"a header says what no tar has: {type(error).__name__}") from None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise tarfile.ReadError("a header names a place outside the file") from None
        if member is not None and (member.size < 0 or self.offset <= member.offset):
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        if member is not None and member.issparse():
            raise tarfile.ReadError("a file with holes (sparse): pack it with its zeros")
        return member

    def check_end(self) -> None:
        """Refuse a seekable tar that was read to its end and was cut there, or has more behind it.

        Raises:
            tarfile.TarError: one of them.
        """
        self.fileobj.seek(self.offset)
        rest = self.fileobj.read(_END_BYTES)
        if not rest:
            raise tarfile.ReadError("it has no end mark, as one that was cut")
        if rest.strip(b"\0"):
            raise tarfile.ReadError("a header is damaged, or there is more behind its end, as in tars put together")
