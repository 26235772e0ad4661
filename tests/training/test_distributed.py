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

from helpers.training import colored_box_rows, free_port, run_staged, tiny_recipe

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
    weights = [load_file(folder / name / "merged" / "model.safetensors") for name in ("one", "two")]
    for name, first in weights[0].items():
        second = weights[1][name]
        if name.endswith("in_proj_bias"):  # the keys' part has no true gradient: AdamW steps along the rounding
            third = len(first) // 3
            first, second = (torch.cat([t[:third], t[2 * third :]]) for t in (first, second))
        if not name.endswith("k_proj.bias"):
            assert (first - second).abs().max() <= 1e-4, name


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
