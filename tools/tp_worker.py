"""Prune a CIFAR ResNet with Torch-Pruning. Runs in an environment with torch, torch-pruning and onnx.

    python tp_worker.py IN.onnx OUT.onnx CUT uniform|global

The network (option A shortcuts) takes its weights from the initializers of IN.onnx. One-shot pruning by group L1
magnitude as Torch-Pruning's README shows it; the ratio is bisected until at least CUT of the MACs are gone.
Prints one line of JSON: seconds of the search, the ratio, and what was left alone: the residual streams, as
Torch-Pruning 1.6.1 cuts them as if the padding added no channels, and the result does not run.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings

import onnx
import torch
import torch.nn.functional as F
import torch_pruning as tp
from onnx import numpy_helper
from torch import Tensor, nn

STEPS = 8  # of the bisection


class Block(nn.Module):
    """Two convolutions; where the shape changes, the shortcut takes every other pixel and adds channels of zeros."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        stride = 1 if inside == out else 2
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.more = out - inside

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(y + x)


class ResNet(nn.Module):
    """The ResNet of the CIFAR experiments with `blocks` blocks in each of three stages."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(blocks)))
        self.layer2 = nn.Sequential(*(Block(16 if k == 0 else 32, 32) for k in range(blocks)))
        self.layer3 = nn.Sequential(*(Block(32 if k == 0 else 64, 64) for k in range(blocks)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def load(path: str) -> ResNet:
    """The network of the file."""
    found = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in onnx.load(path).graph.initializer}
    net = ResNet(len({name.split(".")[1] for name in found if name.startswith("layer1.")}))
    state = net.state_dict()
    net.load_state_dict({k: found.get(k, v) for k, v in state.items()})
    missing = [k for k in state if k not in found and not k.endswith("num_batches_tracked")]
    if missing:
        raise SystemExit(f"{path} is no CIFAR ResNet: no initializer {missing[0]}")
    return net.eval()


def macs(net: nn.Module, x: Tensor) -> int:
    """Multiply-adds of convolutions and of the classifier."""
    total = 0

    def hook(layer: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        total += out.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(hook) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        net(x)
    for h in hooks:
        h.remove()
    return total


def prune(net: ResNet, x: Tensor, ratio: float, everywhere: bool) -> ResNet:
    """A pruned copy, without the channels inside the blocks that matter least."""
    net = copy.deepcopy(net)
    blocks = [m for m in net.modules() if isinstance(m, Block)]
    pruner = tp.pruner.MagnitudePruner(
        net, x, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=ratio, global_pruning=everywhere,
        ignored_layers=[net.conv1, net.linear, *(b.conv2 for b in blocks)],
    )  # fmt: skip
    pruner.step()
    return net


def main() -> None:
    source, out, cut, everywhere = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == "global"
    warnings.simplefilter("ignore")
    net, x = load(source), torch.zeros(1, 3, 32, 32)
    start, left = time.perf_counter(), (1 - cut) * macs(net, x)
    low, high = 0.0, 0.95
    if macs(prune(net, x, high, everywhere), x) > left:
        raise SystemExit(f"a cut of {cut:g} cannot be reached with the residual streams left alone")
    for _ in range(STEPS):
        middle = (low + high) / 2
        if macs(prune(net, x, middle, everywhere), x) <= left:
            high = middle
        else:
            low = middle
    search = time.perf_counter() - start
    torch.onnx.export(
        prune(net, x, high, everywhere), (x,), out, dynamo=False, opset_version=13, input_names=["input"],
        output_names=["logits"], dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    print(f"\n{json.dumps({'search': search, 'ratio': high, 'left': 'residual streams'})}")


if __name__ == "__main__":
    main()
