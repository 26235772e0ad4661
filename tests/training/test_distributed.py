"""Two processes on the CPU (gloo) train what one trains, however they are started; and a sharded model too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.training import colored_box_rows, free_port, make_trainer, row_with_targets, run_staged, tiny_recipe

REPOSITORY = Path(__file__).parents[2]
LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--config_file", "hivg_hf/recipes/accelerate/multi_cpu.yaml"],
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2"],
}


def equal_recipe(checkpoint, kind):
    """Dropout 0, augmentation off; contrastive weight 0, or negatives from both processes."""
    recipe = tiny_recipe(checkpoint)
    recipe["model"]["config"] = {"fusion_dropout": 0.0}
    recipe["data"] = {**recipe["data"], "augmentation": None}
    recipe["data"]["validation"] = {**recipe["data"]["validation"], "size": 11}  # odd: one process has a row less
    recipe["defaults"]["per_device_batch_size"] = 8
    recipe["phases"] = [{**phase, "epochs": 1} for phase in recipe["phases"][:2]]
    recipe["phases"][1]["dropout"] = 0.0
    if kind == "gathered":
        recipe["contrastive_gather"] = True
    else:
        recipe["phases"] = [{**phase, "loss_weights": {"contrastive": 0.0}} for phase in recipe["phases"]]
    return recipe


def launch(launcher, recipe, folder):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    module, *options = LAUNCHERS[launcher]
    port = {"accelerate": "--main_process_port", "torchrun": "--master_port"}[launcher]
    command = [sys.executable, "-m", module, *options, port, str(free_port())]
    command += ["scripts/train.py", str(path), "--out", str(folder / "two")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)


def check_equal_to_one_process(launcher, kind, checkpoint, folder):
    recipe = equal_recipe(checkpoint, kind)
    run_staged(recipe, str(folder / "one"))
    finished = launch(launcher, recipe, folder)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("Training on 2 processes") == 1
    one, two = (json.loads((folder / name / "results.json").read_text()) for name in ("one", "two"))
    for first, second in zip(one["phases"], two["phases"], strict=True):
        for before, after in zip(first["log"], second["log"], strict=True):
            for name in before:
                if name.startswith(("loss", "eval_accuracy", "eval_mean_iou", "grad_norm")) or name == "eval_samples":
                    assert before[name] == pytest.approx(after[name], rel=1e-4, abs=1e-4), name
    assert two["phases"][0]["log"][-2]["eval_samples"] == 11
    assert two["evaluation"]["validation"]["counts"]["rows"] == 11
    check_equal_weights(folder / "one" / "merged", folder / "two" / "merged", 1e-4)


def check_equal_weights(one, two, tolerance):
    """Equal but for the keys' biases: their true gradient is zero, and AdamW makes full steps of the rounding."""
    one, two = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert one.keys() == two.keys()
    for name, first in one.items():
        second = two[name]
        if name.endswith("in_proj_bias"):
            third = len(first) // 3
            first, second = (torch.cat([t[:third], t[2 * third :]]) for t in (first, second))
        if not name.endswith("k_proj.bias"):
            assert (first - second).abs().max() <= tolerance, name


@pytest.mark.timeout(900)  # processes of its own, whose imports take minutes on a busy machine
def test_accelerate_launch_equals_one_process_with_gathered_negatives(tiny_checkpoint, tmp_path):
    check_equal_to_one_process("accelerate", "gathered", tiny_checkpoint, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("launcher", "kind"), [("accelerate", "without"), ("torchrun", "without"), ("torchrun", "gathered")]
)
def test_two_processes_equal_one(launcher, kind, tiny_checkpoint, tmp_path):
    check_equal_to_one_process(launcher, kind, tiny_checkpoint, tmp_path)


def train_with_queries(rank, port, checkpoint, folder, processes=2):
    """One of the processes of a training with three queries on rows of none, one and several targets."""
    from hivg_hf import HiVGForVisualGrounding, HiVGProcessor

    if processes > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
    # A process gets every other row or half of a batch: either way, the two meet unequal numbers of targets.
    counts = (0, 4, 1, 0, 2, 3, 1, 0)
    rows = [row_with_targets(row, counts[place % 8]) for place, row in enumerate(colored_box_rows(24))]
    torch.manual_seed(3)
    weights = {"fusion_dropout": 0.0, "num_queries": 3}
    model = HiVGForVisualGrounding.from_pretrained(checkpoint, **weights)
    model.config.loss_weights = {**model.config.loss_weights, "contrastive": 0.0}  # its negatives are the batch's
    trainer = make_trainer(
        model, HiVGProcessor.from_pretrained(checkpoint), folder, per_device_train_batch_size=8 // processes, rows=rows
    )
    assert trainer.args.world_size == processes
    trainer.train()
    if rank == 0:
        model.save_pretrained(f"{folder}/{processes}")
        Path(f"{folder}/log-{processes}.json").write_text(json.dumps(trainer.state.log_history[:-1]))


@pytest.mark.timeout(900)  # processes of its own, whose imports take minutes on a busy machine
def test_several_queries_train_on_two_processes_as_on_one(forkserver, tiny_checkpoint, tmp_path):
    train_with_queries(0, 0, tiny_checkpoint, str(tmp_path), processes=1)
    run_two(forkserver, train_with_queries, tiny_checkpoint, tmp_path)
    one, two = (json.loads((tmp_path / f"log-{processes}.json").read_text()) for processes in (1, 2))
    assert len(one) == len(two) == 4
    for before, after in zip(one, two, strict=True):
        for name in before:
            if name.startswith(("loss", "grad_norm")):
                assert before[name] == pytest.approx(after[name], rel=1e-4, abs=1e-4), name
    check_equal_weights(tmp_path / "1", tmp_path / "2", 2e-4)


def train_sharded(rank, port, checkpoint, folder):
    """One of two processes: the same steps under DDP and with torch's own fully_shard."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    from hivg_hf import HiVGForVisualGrounding, HiVGProcessor
    from hivg_hf.data.collator import GroundingCollator
    from hivg_hf.training.sharding import restore_shapes, widen_scalars

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    rows = colored_box_rows(8)
    batch = GroundingCollator(HiVGProcessor.from_pretrained(checkpoint))(rows[4 * rank : 4 * rank + 4])

    def steps(model, forward):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(3):
            loss = forward(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    plain = HiVGForVisualGrounding.from_pretrained(checkpoint)
    replicated = steps(plain, DistributedDataParallel(plain, find_unused_parameters=True))
    sharded = HiVGForVisualGrounding.from_pretrained(checkpoint)
    widen_scalars(sharded)
    layers = ("HiVGVisionEncoderLayer", "CLIPEncoderLayer", "HiVGFusionLayer")
    for module in [module for module in sharded.modules() if type(module).__name__ in layers]:
        fully_shard(module)
    fully_shard(sharded)
    losses = steps(sharded, sharded)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        plain.save_pretrained(f"{folder}/replicated")
        whole = HiVGForVisualGrounding(plain.config)
        whole.save_pretrained(f"{folder}/sharded", state_dict=restore_shapes(state, whole))
        Path(f"{folder}/losses.json").write_text(json.dumps([replicated, losses]))
    dist.barrier()
    dist.destroy_process_group()


def load_sharded_adapters(rank, port, checkpoint, folder):
    """One of two processes: adapters, bridge and head written from and read into a sharded model."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    from hivg_hf import HiVGForVisualGrounding
    from hivg_hf.hilora import HiLoraConfig, load_adapter_state, save_adapter_state, start_stage
    from hivg_hf.training.sharding import restore_shapes, widen_scalars

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def build(seed, shards):
        torch.manual_seed(seed)
        model = HiVGForVisualGrounding.from_pretrained(checkpoint)
        config = HiLoraConfig.for_model(model.config, 2, rank=2)
        model = start_stage(start_stage(model, config, 1), config, 2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        if shards:
            widen_scalars(model)
        return fully_shard(model) if shards else model

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    first = build(1, shards=True)
    state = get_model_state_dict(first, options=whole)
    if rank == 0:
        save_adapter_state(first, folder, state)
    dist.barrier()
    second = build(2, shards=True)
    load_adapter_state(second, folder)
    found = get_model_state_dict(second, options=whole)
    if rank == 0:
        assert all(torch.equal(tensor, found[name]) for name, tensor in state.items())
        alone = build(3, shards=False)
        load_adapter_state(alone, folder)
        state = restore_shapes(state, alone)
        assert all(torch.equal(tensor, state[name]) for name, tensor in alone.state_dict().items())
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.timeout(900)  # processes of its own, whose imports take minutes on a busy machine
def test_a_sharded_model_reads_and_writes_the_same_adapter_folders(forkserver, tiny_checkpoint, tmp_path):
    run_two(forkserver, load_sharded_adapters, tiny_checkpoint, tmp_path)


def run_two(context, target, checkpoint, folder):
    port = free_port()
    processes = [context.Process(target=target, args=(rank, port, checkpoint, str(folder))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=800)
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.timeout(900)  # processes of its own, whose imports take minutes on a busy machine
def test_a_fully_sharded_model_trains_and_saves_like_a_replicated_one(forkserver, tiny_checkpoint, tmp_path):
    run_two(forkserver, train_sharded, tiny_checkpoint, tmp_path)
    replicated, sharded = json.loads((tmp_path / "losses.json").read_text())
    assert sharded == pytest.approx(replicated, abs=1e-5)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("replicated", "sharded"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.shape == two[name].shape
        if not name.endswith(("in_proj_bias", "k_proj.bias")):
            assert (tensor - two[name]).abs().max() <= 1e-5, name
