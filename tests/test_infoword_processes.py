"""InfoWord's negatives come from all processes: two of them are as one with all rows, plainly and in Trainer."""

import pytest
import torch
from reference.joint_loss_naive import gradients, largest_difference
from test_infoword import batch, made, trained
from torch.nn.parallel import DistributedDataParallel
from two_processes import run_in_two_processes

IN_BATCH = [("infonce", "in_batch"), ("margin", "in_batch")]


def a_step(way, *parts):
    """Loss and gradients of a step of some rows, in one process or here and elsewhere; its losses in evaluation."""
    model = made(*way, mlm_loss_weight=0.5, contrastive_loss_weight=2.0).train()
    counts = model.count_items(batch())
    outer = DistributedDataParallel(model) if torch.distributed.is_initialized() else model
    found = [outer(**batch(*part), num_items_in_batch=counts) for part in parts]
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    (sum(one.loss for one in found) * world).backward()  # DDP makes a mean of the processes
    losses = [float(one.contrastive_loss.detach()) for one in found]
    model.eval()
    with torch.no_grad():
        again = [float(model(**batch(*part), num_items_in_batch=counts).contrastive_loss) for part in parts]
    assert again == pytest.approx(losses)
    return {"losses": losses, "gradients": gradients(model)}


def two_trained_steps(folder, size, **more):
    """Weights, logs and metrics."""
    trainer, logs = trained(folder, made(), size, 1, per_device_eval_batch_size=size, **more)
    parts = ("loss", "mlm_loss", "contrastive_loss")
    return {
        "weights": dict(trainer.model.named_parameters()),
        "logs": [[log[part] for part in parts] for log in logs],
        "eval": [trainer.evaluate()[f"eval_{part}"] for part in parts],
    }


def evaluated(folder, size, contrast, **more):
    """Metrics of a trainer that has not trained; the batches of two processes are those of one with twice the rows."""
    model = made(contrast, "in_batch")
    numbers = [{"number": number} for number in range(5)]
    options = {"learning_rate": 0.0, "max_steps": 1, "rows": numbers, "per_device_eval_batch_size": size}
    options["data_collator"] = lambda some: joined([row["number"] for row in some])
    metrics = trained(folder, model, size, 1, **options | more)[0].evaluate()
    return [metrics[f"eval_{part}"] for part in ("loss", "mlm_loss", "contrastive_loss")]


def joined(numbers):
    """A batch of any rows, as a process gets it that reads some again to have as many as the others."""
    whole = batch()
    return {name: value[numbers] for name, value in whole.items()}


EVALUATIONS = [(contrast, size) for contrast in ("infonce", "margin") for size in (1, 2)]


def test_negatives_come_from_all_processes(tmp_path):
    """Two processes, with two rows and three, are as one with five; and so is Trainer, whatever rows are left at last."""
    code = """
found = {"trained": suite.two_trained_steps(folder, 2, ddp_backend="gloo")}
rank = torch.distributed.get_rank()
for way in suite.IN_BATCH:
    found[way] = suite.a_step(way, [(0, 2), (2, 5)][rank])
    found[way, "a row"] = suite.a_step(way, [(2, 3), (3, 4)][rank])["losses"]  # of several widths
for contrast, size in suite.EVALUATIONS:
    found[contrast, size] = suite.evaluated(folder, size, contrast, ddp_backend="gloo")
torch.save(found, folder / f"of_process_{rank}")
"""
    run_in_two_processes(__file__, tmp_path, code)
    first, second = (torch.load(tmp_path / f"of_process_{rank}") for rank in (0, 1))
    for way in IN_BATCH:
        whole = a_step(way, (0, 5))
        assert sum(first[way]["losses"] + second[way]["losses"]) == pytest.approx(whole["losses"][0])
        for one in (first, second):
            assert largest_difference(one[way]["gradients"], whole["gradients"]) < 1e-10
        assert sum(first[way, "a row"] + second[way, "a row"]) == pytest.approx(
            a_step(way, (2, 4))["losses"][0]
        )
    for contrast, size in EVALUATIONS:
        whole = evaluated(tmp_path / "one", 2 * size, contrast)
        for one in (first, second):
            assert one[contrast, size] == pytest.approx(whole, rel=1e-6)
    whole = two_trained_steps(tmp_path / "one", 4)
    for one in (first["trained"], second["trained"]):
        assert largest_difference(one["weights"], whole["weights"]) < 1e-7
        assert one["eval"] == pytest.approx(whole["eval"], rel=1e-6)
    for ours, alone in zip(first["trained"]["logs"], whole["logs"], strict=True):
        assert ours == pytest.approx(alone, rel=1e-4)
