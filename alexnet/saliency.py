"""§6.1 Grad-CAM: which parts of a picture speak for a class, by the maps of the last convolution.

The paper has nothing of the kind. The method is that of Selvaraju et al. (ICCV 2017). Axes: B patches, C maps, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.network import Network


def grad_cam(network: Network, patches_BCHW: Tensor, classes_B: Tensor) -> Tensor:
    """How much each position of a patch speaks for its class: B×H×W of the patches' size, 0 or more.

    Each map of the last convolution, after a ReLU, is weighted by the mean gradient of the class's logit with respect to
    the map; the sum, after another ReLU, is upsampled bilinearly. Gradients are taken before the network's ReLU, so they
    are 0 where a unit is off. The network must be whole and in eval mode; the `.grad` of its parameters is not changed.
    """
    assert network.fraction == 1, "Grad-CAM needs a whole network"
    assert not network.training, "Grad-CAM needs eval mode"
    kept_maps: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, maps_BCHW: Tensor) -> Tensor:
        kept_maps.append(maps_BCHW.detach().requires_grad_())
        return kept_maps[-1].clone()  # an in-place ReLU must not change the kept maps

    hook = network.last_maps.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits_BK = network(patches_BCHW)
            own_B = logits_BK.gather(1, classes_B[:, None])
            (gradients_BCHW,) = torch.autograd.grad(own_B.sum(), kept_maps)
    finally:
        hook.remove()
    (maps_BCHW,) = kept_maps
    weights_BC = gradients_BCHW.mean((2, 3))
    cam_BHW = torch.relu(torch.einsum("bc,bchw->bhw", weights_BC, torch.relu(maps_BCHW.detach())))
    scaled_B1HW = F.interpolate(cam_BHW[:, None], patches_BCHW.shape[-2:], mode="bilinear", align_corners=False)
    return scaled_B1HW[:, 0]
