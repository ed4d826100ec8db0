"""The names of a network's weights in other programs' files, and which network they look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from alexnet.names import cut


class OtherNetworkError(ValueError):
    """A file has weights, but not those of a network of this kind."""


SEVERAL = "Save the state_dict of the one that is meant"


def under_our_names(
    found: Mapping[str, Tensor], ours: Mapping[str, Tensor], network: str
) -> tuple[dict[str, Tensor], str]:
    """The tensors under this project's names, and whose names they had: "torchvision's alexnet", or "" for these names.

    `found`, `ours`: state_dicts; `network`: `model.network`. Names may have a prefix, such as DataParallel's `module.` or the
    name of an attribute of Lightning's module. `OtherNetworkError` if the file has other names, or several such networks.
    """
    named = {f"torchvision's {network}": _torchvision(ours, network)}
    if network == "alexnet":
        named[""] = {name: name for name in ours}
    counts = {(prefix, whose): n for whose, names in named.items() for prefix, n in _prefixes(found, names).items()}
    most = [candidate for candidate, count in counts.items() if count == max(counts.values())]
    if len(most) > 1 and counts[most[0]] == len(named[most[0][1]]):
        prefixes = _some([f"'{prefix}'" for prefix, _ in most])
        raise OtherNetworkError(f"has several such networks, with the prefixes {prefixes}. {SEVERAL}")
    if len(most) != 1:
        raise OtherNetworkError(f"{looks_like(found)}. {differences(found, ours)}")
    ((prefix, whose),) = most
    names = named[whose]
    inside = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    parts = {name.partition(".")[0] for name in names}
    more = [name for name in inside if name not in names and name.partition(".")[0] in parts]
    if whose and more:
        raise OtherNetworkError(f"{looks_like(found)}. {whose} has no {_some(more)}")
    return {names.get(name, name): tensor for name, tensor in inside.items()}, whose


def _prefixes(found: Mapping[str, Tensor], names: Mapping[str, str]) -> Counter[str]:
    """What stands before a network's names in the file, such as "" or "module.", and before how many of them."""
    lengths = {name.count(".") for name in names}
    counts = Counter[str]()
    for name in found:
        for dots in lengths:
            parts = name.rsplit(".", dots + 1)
            if (end := ".".join(parts[-dots - 1 :])) in names:
                counts[name.removesuffix(end)] += 1
    return counts


def _torchvision(ours: Mapping[str, Tensor], network: str) -> dict[str, str]:
    """Name in torchvision's network of this kind → our name."""
    if network != "alexnet":
        return {name.removeprefix("body."): name for name in ours}
    from alexnet.peers import TORCHVISION  # torchvision's models take two seconds to import

    split = (name.partition(".") for name in ours)
    return {f"{TORCHVISION[layer]}.{kind}": f"{layer}.{kind}" for layer, _, kind in split if layer in TORCHVISION}


KINDS = (
    ("torchvision's alexnet; recipes/torchvision.yaml has its shape", "features.10.weight", "features.12.weight"),
    ("torchvision's vgg16; recipes/vgg-16.yaml has its shape", "features.28.weight", "features.29.weight"),
    ("torchvision's resnet50; recipes/resnet-50.yaml has its shape", "layer3.5.conv3.weight", "layer3.6.conv3.weight"),
    ("a ResNet of another depth than 50, for which there is no recipe", "layer1.0.conv1.weight", ""),
    ("a VGG or another network of torchvision's, for which there is no recipe", "features.0.weight", ""),
    ("an AlexNet with the names of this project", "fc8.weight", ""),
)
"""What a network looks like that has the first name and lacks the second."""


def looks_like(found: Mapping[str, Tensor]) -> str:
    """Words for the network that a state_dict's names suggest, with the recipe of its shape if there is one."""
    for words, name, other in KINDS:
        if _ends(found, name) and not (other and _ends(found, other)):
            return f"looks like {words}"
    return "looks like none of the networks here"


def _ends(found: Mapping[str, Tensor], name: str) -> bool:
    return any(f".{theirs}".endswith(f".{name}") for theirs in found)


def differences(found: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """The first names that one of two state_dicts lacks, and the first shapes that differ."""
    missing = [name for name in ours if name not in found]
    more = [name for name in found if name not in ours]
    shapes = [
        f"{name} is {shape(found[name])} there and {shape(ours[name])} here"
        for name in ours
        if name in found and found[name].shape != ours[name].shape
    ]
    said = (("It lacks", missing), ("It has", more), ("Other shapes:", shapes))
    return ". ".join(f"{what} {_some(names)}" for what, names in said if names)


def shape(tensor: Tensor | None) -> str:
    """A tensor's shape in words: 96×3×11×11, "a number", or "absent" for None."""
    return "absent" if tensor is None else "×".join(map(str, tensor.shape)) or "a number"


def _some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(cut(name, 80) for name in names[:3]) + more
