"""A trained student as two files: its weights under timm's keys, and a JSON file that says how to use them."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from mmpretrain.registry import TRANSFORMS
from torch import Tensor, nn

from fnkd_plugin.errors import SetupError, first_few
from fnkd_plugin.teachers.timm_models import check_timm_model
from fnkd_plugin.weights import load_weights, read_state_dict

CROP = 7 / 8
"""The side length of the central square, as a part of the shorter side."""
RESIZING = dict(interpolation='bicubic', backend='pillow')
"""Options of MMPretrain's transforms that resize: as timm, which smooths what it makes smaller; OpenCV does not."""


@dataclass(frozen=True)
class Bundle:
    """A student with the metadata for inference.

    Attributes:
        model: timm's name.
        classes: Names of the classes.
        image_size: Pixels a side.
        mean: Per channel, RGB, on the 0 to 1 scale.
        std: As ``mean``.
    """

    model: str
    classes: list[str]
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]

    def save(self, weights: dict[str, Tensor], file: Path) -> None:
        """Write ``file``, a ``.safetensors``, and the ``.json`` beside it."""
        state = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
        file.with_suffix('.json').write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding='utf-8')
        partial = file.with_suffix('.partial')
        partial.write_bytes(safetensors.torch.save(state))  # save_file's can be read by its owner alone
        partial.replace(file)

    def build(self, file: Path) -> nn.Module:
        """The student in eval mode, with the weights of ``file``.

        Raises:
            SetupError: If timm has no such model, or the weights cannot be read or are not the model's.
        """
        check_timm_model(str(file.with_suffix('.json')), self.model, {})
        model = timm.create_model(self.model, num_classes=len(self.classes))
        load_weights(model, read_state_dict(file), f'{self.model} and {file}')
        return model.eval()

    def pixels(self, photo: Path) -> Tensor:
        """A photo as the student sees it in validation, [3, H, W].

        Resized by Pillow's bicubic, as in training and by timm.
        """
        found: dict[str, Any] = dict(img_path=str(photo))
        try:
            for step in val_pipeline(self.image_size):
                found = TRANSFORMS.build(step)(found)
        except Exception as error:  # decoders fail in as many ways as there are formats
            raise SetupError(f'{photo} cannot be read as a photo ({error}).') from error
        pixels = torch.from_numpy(found['img'][..., ::-1].copy()).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


def val_pipeline(size: int) -> list[dict[str, Any]]:
    """A photo's file to the central square of side length ``size``, as MMPretrain's transforms."""
    return [
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=math.floor(size / CROP), edge='short', **RESIZING),  # as timm rounds
        dict(type='CenterCrop', crop_size=size),
    ]


def open_bundle(path: Path) -> tuple[Bundle, Path]:
    """The bundle of a ``.safetensors`` file, or of the only one in a folder, and its weights' file.

    Raises:
        SetupError: If there is none, or its JSON file is missing or lacks something.
    """
    files = [path] if path.suffix == '.safetensors' else sorted(path.glob('*.safetensors'))
    if len(files) != 1 or not files[0].is_file():
        found = f'has {len(files)}: {first_few(files)}' if len(files) > 1 else 'has none'
        raise SetupError(f'{path}: give one .safetensors file as fnkd train writes it, or its folder; this {found}.')
    about = files[0].with_suffix('.json')
    try:
        return Bundle(**json.loads(about.read_text(encoding='utf-8'))), files[0]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise SetupError(f'{about}: it should say model, classes, image_size, mean and std ({error}).') from error


def predict(path: Path, photos: Sequence[Path], batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """The three likeliest classes of each photo, with their probabilities.

    Args:
        path: See :func:`open_bundle`.
        photos: Image files.
        batch_size: Photos at once.

    Yields:
        For each photo, in order, ``photo`` and ``classes``, a dict of probabilities by name, the largest first; or
        ``error`` instead of ``classes`` if it cannot be read.

    Raises:
        SetupError: If one of ``photos`` is a folder.
    """
    for photo in photos:
        if photo.is_dir():
            raise SetupError(f'{photo} is a folder; give its photos, such as {photo}/*.jpg.')
    bundle, file = open_bundle(path)
    model = bundle.build(file)
    for start in range(0, len(photos), batch_size):
        rows: list[dict[str, Any]] = [dict(photo=str(photo)) for photo in photos[start : start + batch_size]]
        images = []
        for row in rows:
            try:
                images.append(bundle.pixels(Path(row['photo'])))
            except SetupError as error:
                row['error'] = str(error)
        read = [row for row in rows if 'error' not in row]
        for row, probabilities in zip(read, _probabilities(model, images), strict=True):
            values, indices = probabilities.topk(min(3, len(bundle.classes)))
            named = zip(indices.tolist(), values.tolist(), strict=True)
            row['classes'] = {bundle.classes[k]: round(p, 4) for k, p in named}
        yield from rows


@torch.no_grad()
def _probabilities(model: nn.Module, images: list[Tensor]) -> Sequence[Tensor]:
    return model(torch.stack(images)).softmax(dim=1) if images else []


def export(path: Path, out: Path) -> float:
    """Write the student as ONNX, with a free batch size, and compare it with PyTorch's on random images.

    Args:
        path: See :func:`open_bundle`.
        out: The ``.onnx`` file.

    Returns:
        The largest difference of the logits, as a share of the largest logit.

    Raises:
        SetupError: If a package is missing, the file exists, or the two differ by more than 1e-3.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SetupError(f"export needs {error.name}: pip install 'fnkd_plugin[export]'.") from error
    if out.exists():
        raise SetupError(f'{out} exists; remove it or give another file.')
    bundle, file = open_bundle(path)
    model = bundle.build(file)
    out.parent.mkdir(parents=True, exist_ok=True)
    images = torch.randn(2, 3, bundle.image_size, bundle.image_size)
    batch = {0: torch.export.Dim('batch')}
    program = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        verbose=False,
        input_names=['images'],
        output_names=['logits'],
        dynamic_shapes=(batch,),
    )
    assert program is not None
    proto = program.model_proto
    about = dict(asdict(bundle), classes=bundle.classes)
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in about.items()})
    onnx.save(proto, out)
    images = torch.randn(3, 3, bundle.image_size, bundle.image_size)
    with torch.no_grad():
        expected = model(images)
    session = onnxruntime.InferenceSession(str(out), providers=['CPUExecutionProvider'])
    found = torch.from_numpy(session.run(None, {'images': images.numpy()})[0])
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if difference > 1e-3:
        raise SetupError(f'{out}: its logits differ from PyTorch by {difference:.1e} of the largest; do not use it.')
    return difference
