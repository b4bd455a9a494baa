import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

from lightning_fold.data import ImageFolderDataModule


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 6), ("val", 2), ("test", 2)):
        for shade, name in ((10, "dark"), (240, "light")):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                image = torch.full((3, 20, 30), shade, dtype=torch.uint8)
                image[:, :, :15] += index
                to_pil_image(image).save(tmp_path / part / name / f"{index}.png")
    return tmp_path


def test_reads_classes_and_pixels(folder):
    module = ImageFolderDataModule(str(folder), image_size=14, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    inputs, targets = next(iter(module.test_dataloader()))
    assert inputs.shape == (4, 3, 14, 14)
    assert targets.tolist() == [0, 0, 1, 1]
    assert module.num_classes == 2
    torch.testing.assert_close(inputs[:, 0, 7, 13], torch.tensor([10, 10, 240, 240]) / 255)


def test_training_batches_are_the_same_after_a_restart(folder):
    batches = [
        torch.cat([inputs for inputs, _ in ImageFolderDataModule(str(folder), 14, 4).train_dataloader()]) for _ in "ab"
    ]
    assert torch.equal(*batches)
    plain = ImageFolderDataModule(str(folder), 14, 4, augment=False)
    assert not torch.equal(torch.cat([inputs for inputs, _ in plain.train_dataloader()]), batches[0])


def test_missing_part_is_reported_with_the_fix(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/train.*data_dir"):
        ImageFolderDataModule(str(tmp_path)).setup("fit")


def test_parts_must_have_the_same_classes(folder):
    (folder / "val" / "dark").rename(folder / "val" / "dim")
    with pytest.raises(ValueError, match=r"dim.*dark"):
        ImageFolderDataModule(str(folder)).setup("fit")


def test_image_size_out_of_range_is_refused():
    with pytest.raises(ValueError, match="image_size=0"):
        ImageFolderDataModule(image_size=0)
