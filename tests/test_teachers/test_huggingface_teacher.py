"""Image classifiers of Hugging Face's transformers as teachers."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from fnkd_plugin.errors import SetupError
from fnkd_plugin.teachers import HuggingFaceTeacher, PixelFormat
from tests.helpers import CLASSES, MEAN, SIZE, STD, distilled, resnet, train

pytestmark = pytest.mark.upstream

IMAGES = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(
        SetupError, match=r'HuggingFaceTeacher\(x\): it needs transformers; .*fnkd_plugin\[huggingface\]'
    ):
        HuggingFaceTeacher('x')


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory as of ``save_pretrained``: a tiny ViT with random weights, and its image processor."""
    transformers = pytest.importorskip('transformers', reason="needs transformers: pip install '.[huggingface]'")
    torch.manual_seed(0)
    cfg = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE,
        patch_size=8,
        id2label={k: f'c{k}' for k in range(CLASSES)},
    )
    transformers.ViTForImageClassification(cfg).save_pretrained(tmp_path / 'vit')
    processor = transformers.ViTImageProcessor(
        size=dict(height=SIZE, width=SIZE), image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(tmp_path / 'vit')
    return tmp_path / 'vit'


def _edit(folder: Path, file: str, **changes: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changes}))


def test_prediction_is_the_models_own(saved: Path) -> None:
    import transformers

    teacher = HuggingFaceTeacher(saved)
    assert teacher.pixels == PixelFormat.of([127.5, 102, 76.5], [51, 76.5, 102], 'rgb')
    assert (teacher.input_size, teacher.num_classes, teacher.has_feature_norm) == ((SIZE, SIZE), CLASSES, True)
    teacher.prepare(teacher.pixels)
    prediction = teacher.predict(IMAGES)
    plain = transformers.AutoModelForImageClassification.from_pretrained(saved).eval()
    with torch.no_grad():
        assert torch.equal(prediction.logits, plain(pixel_values=IMAGES).logits)
        feature = plain.vit(pixel_values=IMAGES).last_hidden_state[:, 0]
    torch.testing.assert_close(prediction.feature_norm, feature.norm(dim=1))
    assert torch.equal(prediction.origin, plain.classifier.bias)


def test_classes_are_in_the_order_of_their_numbers(saved: Path) -> None:
    """Whatever that of the file."""
    _edit(saved, 'config.json', id2label={'2': 'owl', '0': 'gull', '3': 'wren', '1': 'tit'})
    assert HuggingFaceTeacher(saved).class_map.own.names == ['gull', 'tit', 'owl', 'wren']
    _edit(saved, 'config.json', id2label={str(k): f'LABEL_{k}' for k in (2, 0, 3, 1)})
    assert HuggingFaceTeacher(saved).class_map.own is None


def test_format_is_the_processors(saved: Path) -> None:
    """What the teacher makes of a student's batch is what the processor makes of the image."""
    import transformers

    image = torch.randint(0, 256, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = transformers.AutoImageProcessor.from_pretrained(saved)(image, return_tensors='pt')['pixel_values']
    seen: list[torch.Tensor] = []
    teacher = HuggingFaceTeacher(saved)
    teacher.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs['pixel_values']), with_kwargs=True
    )
    teacher.prepare(PixelFormat.of(MEAN, STD, 'rgb'))
    shape = (1, 3, 1, 1)
    teacher.predict((image.float() - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape))
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('resample', [2, 3])
def test_images_of_another_size_are_resized_as_the_processor_does(resample: int, saved: Path) -> None:
    """To a grey level: the processor resizes whole numbers, in two steps."""
    import transformers

    _edit(saved, 'preprocessor_config.json', resample=resample)
    image = torch.randint(80, 176, (3, 50, 50), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = transformers.AutoImageProcessor.from_pretrained(saved)(image, return_tensors='pt')['pixel_values']
    teacher = HuggingFaceTeacher(saved)
    assert str(teacher._resize) == f'{SIZE} px {"bilinear" if resample == 2 else "bicubic"}'
    seen: list[torch.Tensor] = []
    teacher.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs['pixel_values']), with_kwargs=True
    )
    teacher.prepare(PixelFormat.of([0.0] * 3, [1.0] * 3, 'rgb'))
    teacher.predict(image[None].float())
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1.01 / 255 / 0.2)


def test_a_processor_that_resizes_nothing_has_no_interpolation(saved: Path) -> None:
    _edit(saved, 'preprocessor_config.json', do_resize=False, resample=None, do_center_crop=True, crop_size=SIZE)
    assert str(HuggingFaceTeacher(saved)._resize) == f'{SIZE} px bicubic'


def test_format_is_what_a_processor_does_not_what_it_states(saved: Path) -> None:
    """EfficientNet's divides by std twice."""
    import transformers

    stated = dict(size=dict(height=SIZE, width=SIZE), image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.4])
    processor = transformers.EfficientNetImageProcessor(**stated, crop_size=dict(height=SIZE, width=SIZE))
    processor.save_pretrained(saved)
    assert HuggingFaceTeacher(saved).pixels == PixelFormat.of([127.5, 102, 76.5], [10.2, 15.9375, 40.8], 'rgb')


def test_processors_of_other_kinds(saved: Path) -> None:
    """A centre crop is the size; a flipped channel order and no normalisation are the format."""
    _edit(
        saved,
        'preprocessor_config.json',
        image_processor_type='MobileViTImageProcessor',
        size=dict(shortest_edge=40),
        do_center_crop=True,
        crop_size=dict(height=SIZE, width=SIZE),
        do_normalize=False,
        do_flip_channel_order=True,
    )
    teacher = HuggingFaceTeacher(saved)
    assert teacher.input_size == (SIZE, SIZE) and teacher.pixels.channel_order == 'bgr'
    assert teacher.pixels.mean == (0.0, 0.0, 0.0) and teacher.pixels.std == pytest.approx((255, 255, 255))


def test_sizes_that_depend_on_the_image_are_refused(saved: Path) -> None:
    """A shortest edge without a crop is a square for squares alone."""
    _edit(saved, 'preprocessor_config.json', image_processor_type='CLIPImageProcessor', do_center_crop=False)
    _edit(saved, 'preprocessor_config.json', size=dict(shortest_edge=SIZE))
    with pytest.raises(SetupError, match=r'depends on the image: .*\(48, 32\).*; give input_size=N'):
        HuggingFaceTeacher(saved)
    assert HuggingFaceTeacher(saved, input_size=SIZE).input_size == (SIZE, SIZE)


def test_sizes_need_not_be_square(saved: Path) -> None:
    _convolutional(saved)
    _edit(saved, 'preprocessor_config.json', size=dict(height=48, width=32))
    assert HuggingFaceTeacher(saved).input_size == (48, 32)


def _convolutional(folder: Path) -> Any:
    """A ResNet, which takes images of any size, in place of the ViT."""
    import transformers

    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type='basic', num_labels=CLASSES
    )
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(folder)
    return model


def test_without_resizing_images_keep_the_students_size(saved: Path) -> None:
    """As transformers shows them to the model, of whatever size."""
    import transformers

    model = _convolutional(saved)
    _edit(saved, 'preprocessor_config.json', do_resize=False, do_center_crop=False)
    processor = transformers.AutoImageProcessor.from_pretrained(saved)
    teacher = HuggingFaceTeacher(saved)
    assert teacher.input_size is None
    teacher.prepare(PixelFormat.of([0.0] * 3, [1.0] * 3, 'rgb'))
    for height, width in ((32, 32), (40, 24)):
        image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        with torch.no_grad():
            theirs = model(pixel_values=processor(image, return_tensors='pt')['pixel_values']).logits
        torch.testing.assert_close(teacher.predict(image[None].float()).logits, theirs, rtol=1e-4, atol=1e-4)


def test_without_resizing_a_model_of_one_size_keeps_its_own(saved: Path) -> None:
    """Which the processor does not state."""
    _edit(saved, 'preprocessor_config.json', do_resize=False, do_center_crop=False)
    teacher = HuggingFaceTeacher(saved)
    assert teacher.input_size == (SIZE, SIZE)
    teacher.prepare(teacher.pixels)
    assert teacher.predict(torch.randn(2, 3, 50, 50)).logits.shape == (2, CLASSES)


def test_normalising_by_the_image_itself_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fnkd_plugin.teachers import huggingface_teacher

    def standardised(processor: Any, colour: Any, height: int, width: int) -> torch.Tensor:
        return torch.zeros(3, height, width)  # a picture of one colour less its own mean

    monkeypatch.setattr(huggingface_teacher, '_processed', standardised)
    with pytest.raises(SetupError, match='one mean and std per channel; give mean, std and channel_order'):
        HuggingFaceTeacher(saved)
    stated = HuggingFaceTeacher(saved, mean=np.array(MEAN), std=STD, channel_order='bgr')
    assert stated.pixels == PixelFormat.of(MEAN, STD, 'bgr')


@pytest.mark.parametrize('entry', ['someone/kernel', 'flash_attention_2', {'': 'someone/kernel@v1'}])
def test_code_of_the_hub_is_refused(entry: Any, saved: Path) -> None:
    _edit(saved, 'config.json', attn_implementation='sdpa')
    HuggingFaceTeacher(saved)
    for changes in (
        dict(attn_implementation=entry),
        dict(attn_implementation=None, text=dict(attn_implementation=entry)),
    ):
        _edit(saved, 'config.json', **changes)
        with pytest.raises(SetupError, match=r"attention '(someone/kernel|flash_attention_2).*code from the hub"):
            HuggingFaceTeacher(saved)


def test_names_are_the_models(saved: Path) -> None:
    teacher = HuggingFaceTeacher(saved, class_map=['c3', 'c1'])
    assert teacher.num_classes == 2
    _edit(saved, 'config.json', id2label={k: f'LABEL_{k}' for k in range(CLASSES)})
    with pytest.raises(SetupError, match="needs the names of the teacher's classes"):
        HuggingFaceTeacher(saved, class_map=['c3', 'c1'])


def test_teaches_through_the_runner(saved: Path, tmp_path: Path) -> None:
    teacher = dict(type='HuggingFaceTeacher', path=str(saved))
    model = distilled(resnet(), teacher, dict(type='FNKDLoss'))
    runner = train(model, tmp_path / 'run', train_cfg=dict(by_epoch=True, max_epochs=1))
    assert runner.message_hub.get_scalar('train/teacher_norm').current() > 0


def test_no_weight_is_random_in_silence(saved: Path) -> None:
    state = safetensors.torch.load_file(saved / 'model.safetensors')
    del state['classifier.weight']
    safetensors.torch.save_file(state, saved / 'model.safetensors', metadata=dict(format='pt'))
    with pytest.raises(SetupError, match=r'lack 1 weights \(classifier.weight\), which would be random'):
        HuggingFaceTeacher(saved)


def test_pickled_weights_are_not_read(saved: Path) -> None:
    state = safetensors.torch.load_file(saved / 'model.safetensors')
    (saved / 'model.safetensors').unlink()
    torch.save(state, saved / 'pytorch_model.bin')
    with pytest.raises(SetupError, match=r'HuggingFaceTeacher\(.*\): transformers cannot load it .*model.safetensors'):
        HuggingFaceTeacher(saved)


def test_multi_label_models_are_refused(saved: Path) -> None:
    _edit(saved, 'config.json', problem_type='multi_label_classification')
    with pytest.raises(SetupError, match='for multi_label_classification, not single-label'):
        HuggingFaceTeacher(saved)
