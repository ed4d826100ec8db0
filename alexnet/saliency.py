"""§6.1 Where in a picture the network sees what it takes it for: Grad-CAM, over the maps of the last convolution.

The paper asks this of no picture. The method is that of Selvaraju et al. (ICCV 2017). In shapes: B patches, C maps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.network import Network


def grad_cam(network: Network, patches_BCHW: Tensor, classes_B: Tensor) -> Tensor:
    """How much each place of a patch speaks for its class: B×H×W, 0 or more, as large as the patches.

    The slopes of the class's logit along each of the last convolution's maps, averaged over the places, weigh the maps,
    rectified; what their sum has above 0 is scaled up, bilinearly. The slopes are taken before the relu, so they are 0
    where a unit is silent. The network is whole, in eval mode; its parameters' gradients are left as they are.
    """
    assert network.fraction == 1, "the maps are those of a whole network"
    assert not network.training, "the maps are taken in eval mode"
    taken: list[Tensor] = []

    def take(_module: nn.Module, _inputs: object, maps_BCHW: Tensor) -> Tensor:
        taken.append(maps_BCHW.detach().requires_grad_())
        return taken[-1].clone()  # a relu that works in place is not to change what is kept

    hook = network.last_maps.register_forward_hook(take)
    try:
        with torch.enable_grad():
            logits_BK = network(patches_BCHW)
            own_B = logits_BK.gather(1, classes_B[:, None])
            (slopes_BCHW,) = torch.autograd.grad(own_B.sum(), taken)
    finally:
        hook.remove()
    (maps_BCHW,) = taken
    weights_BC = slopes_BCHW.mean((2, 3))
    places_BHW = torch.relu(torch.einsum("bc,bchw->bhw", weights_BC, torch.relu(maps_BCHW.detach())))
    scaled_B1HW = F.interpolate(places_BHW[:, None], patches_BCHW.shape[-2:], mode="bilinear", align_corners=False)
    return scaled_B1HW[:, 0]
