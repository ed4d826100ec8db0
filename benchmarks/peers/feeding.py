"""The peers' feeding: 256 × 256 JPEGs on a disk → shuffled, cropped, reflected, coloured batches of 128, as their users write it.

Run:    python benchmarks/peers/feeding.py NAME FOLDER WORKERS, in the environment of benchmarks/requirements.lock

`NAME` is a function of this file; each returns a function that runs an epoch and counts its pictures. FOLDER has a folder of
JPEGs for each class; what a peer wants in another form is written beside it, before the timing. Colour is §4.1's change of
light; DALI and SPDL, which have no such operation for a batch, get it as an addition to the whole batch.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

if __name__ == "__main__":  # before the slow imports
    from pipeline.runtime import usage

    parser = usage.parser_at(__file__, "python benchmarks/peers/feeding.py")
    parser.add_argument("name", choices=("imagefolder", "webdataset", "litdata", "spdl", "dali", "ffcv", "ray_data"))
    parser.add_argument("folder", type=usage.existing_path, help="with a folder of JPEGs for each class")
    parser.add_argument("workers", type=int, help="threads or processes")
    parser.parse_args()

import ctypes.util
import importlib
import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from benchmarks.turns import work

BATCH, SIDE = 128, 224

Epoch = Callable[[], int]

MEAN_C = torch.tensor([123.0, 116.0, 103.0])

USUAL = transforms.Compose([transforms.RandomCrop(SIDE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()])

VALUES_C, VECTORS_CC = torch.tensor([14000.0, 1300.0, 380.0]).sqrt(), torch.linalg.qr(torch.randn(3, 3))[0]


def light(count: int) -> Tensor:
    """What is added to the channels of each picture, B×3×1×1."""
    return (0.1 * torch.randn(count, 3) * VALUES_C @ VECTORS_CC.T)[:, :, None, None]


def counted(batches: Iterable[Any], pictures: Callable[[Any], Tensor]) -> int:
    """The number of pictures in the batches, each seen to be of the right kind."""
    total = 0
    for batch in batches:
        patches_BCHW = pictures(batch)
        assert patches_BCHW.dtype == torch.float32
        assert patches_BCHW.shape[1:] == (3, SIDE, SIDE)
        total += len(patches_BCHW)
    return total


def changed(picture: Any) -> Tensor:
    """A picture of Pillow's → its patch, by torchvision's usual transforms, and the change of light."""
    patch: Tensor = (USUAL(picture).float() - MEAN_C[:, None, None] + light(1)[0]) / 1.1
    return patch


def imagefolder(folder: Path, workers: int) -> Epoch:
    """Torchvision's ImageFolder and torch's DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    loader: DataLoader[Any] = DataLoader(
        ImageFolder(str(folder), changed), BATCH, shuffle=True, num_workers=workers, persistent_workers=True
    )
    return lambda: counted(loader, lambda batch: batch[0])


def webdataset(folder: Path, workers: int) -> Epoch:
    """Tar files, shuffled in a buffer."""
    import webdataset as wds

    classes = sorted(each.name for each in folder.iterdir())
    files = [(file, classes.index(file.parent.name)) for file in sorted(folder.glob("*/*.jpg"))]
    np.random.default_rng(0).shuffle(files)  # type: ignore[arg-type]
    target = folder.parent / "webdataset"
    target.mkdir(exist_ok=True)
    with wds.ShardWriter(str(target / "%05d.tar"), maxcount=-(-len(files) // (4 * workers)), verbose=0) as writer:
        for number, (file, label) in enumerate(files):
            writer.write({"__key__": f"{number:08}", "jpg": file.read_bytes(), "cls": label})
    tars = [str(file) for file in sorted(target.glob("*.tar"))]
    data = (
        wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode("pil").to_tuple("jpg", "cls")
        .map_tuple(changed, int).batched(BATCH)
    )  # fmt: skip
    loader = wds.WebLoader(data, batch_size=None, num_workers=workers, persistent_workers=True)
    return lambda: counted(loader, lambda batch: batch[0])


def _row(file: str) -> dict[str, Any]:
    return {"image": Path(file).read_bytes(), "label": Path(file).parent.name}


def _changed(row: dict[str, Any]) -> tuple[Tensor, str]:
    return changed(Image.open(io.BytesIO(row["image"])).convert("RGB")), row["label"]


def litdata(folder: Path, workers: int) -> Epoch:
    """Chunks of a litdata dataset."""
    import litdata as ld

    target = folder.parent / "litdata"
    files = [str(file) for file in sorted(folder.glob("*/*.jpg"))]
    if not target.exists():
        ld.optimize(fn=_row, inputs=files, output_dir=str(target), chunk_bytes="16MB", num_workers=workers)
    data = ld.StreamingDataset(str(target), shuffle=True, transform=_changed)
    loader = ld.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers, persistent_workers=True)
    return lambda: counted(loader, lambda batch: batch[0])


def spdl(folder: Path, workers: int) -> Epoch:
    """SPDL's pipeline of threads. Its own decoder needs FFmpeg's libraries; without them torchvision's serves."""
    from spdl.pipeline import PipelineBuilder
    from torchvision.io import ImageReadMode, decode_jpeg

    own = importlib.import_module("spdl.io") if ctypes.util.find_library("avutil") else None
    files = [str(file) for file in sorted(folder.glob("*/*.jpg"))]
    lots = np.random.default_rng(0)

    def patch(row: tuple[str, int, int, int]) -> Tensor:
        file, y, x, reflected = row
        data = Path(file).read_bytes()
        if own:
            crop = f"crop={SIDE}:{SIDE}:{x}:{y},format=pix_fmts=rgb24"
            patch_CHW = own.to_torch(own.load_image(data, filter_desc=crop)).permute(2, 0, 1)
        else:
            pixels_CHW = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
            patch_CHW = pixels_CHW[:, y : y + SIDE, x : x + SIDE]
        return patch_CHW.flip(-1) if reflected else patch_CHW

    def batched(patches: list[Tensor]) -> Tensor:
        return (torch.stack(patches).float() - MEAN_C[:, None, None] + light(len(patches))) / 1.1

    def epoch() -> int:
        drawn = lots.integers(0, (33, 33, 2), (len(files), 3)).tolist()
        source = [(files[index], *drawn[index]) for index in lots.permutation(len(files))]
        pipeline = (
            PipelineBuilder().add_source(source).pipe(patch, concurrency=workers).aggregate(BATCH)
            .pipe(batched).add_sink(2).build(num_threads=workers + 1)
        )  # fmt: skip
        with pipeline.auto_stop():
            return counted(pipeline, lambda batch: batch)

    return epoch


def dali(folder: Path, workers: int) -> Epoch:
    """DALI's pipeline on a CPU."""
    from nvidia.dali import fn, pipeline_def, types

    count = len(list(folder.glob("*/*.jpg")))

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None, prefetch_queue_depth=2)
    def reading() -> Any:
        data, labels = fn.readers.file(file_root=str(folder), random_shuffle=True, name="reader")
        pixels = fn.decoders.image(data, device="cpu", output_type=types.RGB)
        patches = fn.crop_mirror_normalize(
            pixels, crop=(SIDE, SIDE), crop_pos_x=fn.random.uniform(range=(0, 1)), crop_pos_y=fn.random.uniform(range=(0, 1)),
            mirror=fn.random.coin_flip(), mean=MEAN_C.tolist(), std=[1.1] * 3, output_layout="CHW",
        )  # fmt: skip
        return patches, labels

    pipeline = reading()
    pipeline.build()

    def epoch() -> int:
        total = 0
        while total < count:
            patches, _ = pipeline.run()
            batch = torch.from_numpy(patches.as_array())
            batch += light(len(batch)) / 1.1
            total += counted([batch], lambda batch: batch)
        return total

    return epoch


def ffcv(folder: Path, workers: int) -> Epoch:
    """FFCV in JPEG mode."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    target = folder.parent / "ffcv.beton"
    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    DatasetWriter(str(target), fields, num_workers=workers).from_indexed_dataset(ImageFolder(str(folder)))
    image = [
        CenterCropRGBImageDecoder((SIDE, SIDE), 1),
        RandomTranslate(16),
        RandomHorizontalFlip(),
        ToTensor(),
        ToTorchImage(),
    ]
    loader = Loader(
        str(target), batch_size=BATCH, num_workers=workers, order=OrderOption.RANDOM,
        pipelines={"image": image, "label": [IntDecoder(), ToTensor()]},
    )  # fmt: skip
    return lambda: counted(
        loader, lambda batch: (batch[0].float() - MEAN_C[:, None, None] + light(len(batch[0]))) / 1.1
    )


def ray_data(folder: Path, workers: int) -> Epoch:
    """Ray Data, as its guide reads pictures for a training."""
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)

    def patches(rows: dict[str, Any]) -> dict[str, Any]:
        return {"image": np.stack([changed(Image.fromarray(pixels)).numpy() for pixels in rows["image"]])}

    data = ray.data.read_images(str(folder), mode="RGB", shuffle="files").map_batches(patches, batch_size=BATCH)

    def epoch() -> int:
        return counted(
            data.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=1000), lambda batch: batch["image"]
        )

    return epoch


if __name__ == "__main__":
    arguments = parser.parse_args()
    work(globals()[arguments.name](arguments.folder, arguments.workers))
