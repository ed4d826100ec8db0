"""§3.2: processes with a column each, and replicas of such pairs, against one process with groups of 2."""

import dataclasses
import multiprocessing
import os
import socket
import sys

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from alexnet.augmentation import Statistics, training_patches
from alexnet.columns import Apart, Together, gather
from alexnet.learning import Momentum, step
from alexnet.model import REPLICATED, AlexNet
from alexnet.network import Dropout
from tests.alexnet.test_model import NARROW
from tests.sections import AUGMENTATION, LEARNING

MORE = dataclasses.replace(
    NARROW,
    kernels=(96, 256, 384, 384, 256, 256),
    units=(4096, 4096, 2048),
    normalization="batch",
    dropout_layers=(5, 6, 7),
)
"""All that the paper's network for one set does not have."""

BATCH = 6
CLASSES = 10


def five_steps(link, dtype, replica=0, replicas=1, reduce=None, resume=None, first=0, last=5, model=NARROW):
    """Steps with dropout, colour and a fall of the rate; → the whole weights and velocities, and the losses."""
    network = AlexNet(model, CLASSES, link)
    network.draw_first_weights(0)
    network.to(dtype)
    rule = Momentum(network, LEARNING)
    if resume:
        network.load_state_dict(network.local_part(resume["weights"]))
        for name, tensor in network.local_part(resume["velocity"]).items():
            rule.velocity[name].copy_(tensor)
    generator = torch.Generator().manual_seed(0)
    statistics = Statistics(torch.full((3, 256, 256), 120.0), torch.tensor([14830.0, 1376.0, 389.0]), torch.eye(3))
    losses = []
    for number in range(5):
        images = torch.randint(0, 256, (BATCH, 3, 256, 256), generator=generator, dtype=torch.uint8)
        if not first <= number < last:
            continue
        places = torch.arange(BATCH) + number * BATCH
        rows = torch.arange(BATCH)[torch.arange(BATCH) % replicas == replica]
        patches = training_patches(images[rows], places[rows], statistics, AUGMENTATION, 0, 0, dtype)
        rates, dropout = LEARNING.rates(number), Dropout(0, number, rows)
        measured = step(
            network, rule, patches, rows % CLASSES, rates=rates, dropout=dropout, count=BATCH, reduce=reduce
        )
        losses.append(measured.loss_sum)
    return {
        "weights": gather(network.state_dict(), network.link, network.replicated),
        "velocity": gather(rule.velocity, network.link, network.replicated),
        "losses": losses,
    }


def process(rank, size, port, dtype, options, answers):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    torch.set_num_threads(1)
    listening = (
        socket.create_server(("127.0.0.1", port)).detach() if rank == 0 else None
    )  # torch's own is on all interfaces
    store = TCPStore("127.0.0.1", port, size, rank == 0, master_listen_fd=listening)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    groups = [dist.new_group([*range(column, size, 2)]) for column in range(2)]

    def add_up(tensors):
        for tensor in tensors:
            dist.all_reduce(tensor, group=groups[rank % 2])

    result = five_steps(Apart(rank % 2, rank ^ 1), dtype, rank // 2, size // 2, add_up if size > 2 else None, **options)
    plain = {key: {name: tensor.numpy() for name, tensor in result[key].items()} for key in ("weights", "velocity")}
    answers.put((rank, {**plain, "losses": result["losses"]}))
    dist.destroy_process_group()


def apart(size, dtype, **options):
    """What each of `size` processes with a column each ends with."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        context.Process(target=process, args=(rank, size, port, dtype, options, answers)) for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    results = dict(answers.get(timeout=240) for _ in workers)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return [
        {
            key: {name: torch.from_numpy(array) for name, array in results[rank][key].items()}
            for key in ("weights", "velocity")
        }
        | {"losses": results[rank]["losses"]}
        for rank in range(size)
    ]


def largest_difference(ours, theirs):
    """Relative to the largest entry of each tensor."""
    return max(
        ((ours[key][name] - theirs[key][name]).abs().max() / theirs[key][name].abs().max().clamp(min=1e-6)).item()
        for key in ("weights", "velocity")
        for name in theirs[key]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "bound", "model"),
    [
        (torch.float64, 1e-12, NARROW),
        (torch.float32, 1e-3, NARROW),  # rounding may tell which of two equals in a pooling window gets the gradient
        (torch.float64, 1e-9, MORE),
    ],  # a mean over 6 pictures makes rounding larger
    ids=["float64", "float32", "with all that there can be"],
)
def test_two_processes_equal_one_with_groups_of_2(dtype, bound, model):
    one = five_steps(Together(2), dtype, model=model)
    for process_result in apart(2, dtype, model=model):
        assert largest_difference(process_result, one) <= bound
        assert process_result["losses"] == pytest.approx(one["losses"], rel=bound)


@pytest.mark.slow
def test_two_replicas_of_two_columns_equal_one_process():
    one = five_steps(Together(2), torch.float64)
    assert max(largest_difference(result, one) for result in apart(4, torch.float64)) <= 1e-12


@pytest.mark.slow
def test_each_placement_goes_on_from_the_other():
    undisturbed = five_steps(Together(2), torch.float64)
    half = five_steps(Together(2), torch.float64, last=3)
    after = apart(2, torch.float64, resume=half, first=3)[0]
    assert largest_difference(after, undisturbed) <= 1e-12
    half = apart(2, torch.float64, last=3)[1]
    after = five_steps(Together(2), torch.float64, resume=half, first=3)
    assert largest_difference(after, undisturbed) <= 1e-12


def test_the_halves_are_the_rows_of_the_whole():
    whole = AlexNet(NARROW, CLASSES)
    whole.draw_first_weights(7)
    halves = []
    for column in range(2):
        half = AlexNet(NARROW, CLASSES, Apart(column, 1 - column))
        half.draw_first_weights(7)
        halves.append(half)
        for name, part in whole.local_part.__func__(half, dict(whole.named_parameters())).items():
            assert torch.equal(part, half.get_parameter(name)), name
    for name, tensor in whole.named_parameters():
        parts = [half.get_parameter(name) for half in halves]
        assert torch.equal(tensor, parts[0] if name in REPLICATED else torch.cat(parts)), name


def test_each_process_holds_half_of_the_kernels():
    half = AlexNet(dataclasses.replace(NARROW, width=1.0), 1000, Apart(0, 1))
    held = sum(p.numel() for name, p in half.named_parameters() if name not in REPLICATED)
    assert held == (60_965_224 - 4_097_000) / 2


def test_it_crosses_before_layers_3_6_7_and_8_and_nowhere_else():
    crossings = []

    class Counting(Together):
        def cross(self, maps):
            crossings.append(tuple(maps.shape[1:]))
            return maps

        cross_last = cross

    network = AlexNet(NARROW, CLASSES, Counting(2)).eval()
    network(torch.zeros(1, 3, 224, 224))
    assert crossings == [(16, 13, 13), (16, 6, 6), (256,), (256,)]


def test_there_is_no_third_column():
    with pytest.raises(ValueError, match="columns 0 and 1, not 2"):
        Apart(2, 0)
