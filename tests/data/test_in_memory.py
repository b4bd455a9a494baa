import time

import pytest
import torch
import torchvision
from torchvision.transforms import v2

from lightning_fold.data import CIFAR10DataModule, FashionMNISTDataModule, MNISTDataModule


@pytest.mark.parametrize(
    ("module_class", "dataset_class"),
    [(MNISTDataModule, torchvision.datasets.MNIST), (CIFAR10DataModule, torchvision.datasets.CIFAR10)],
)
def test_batches_equal_torchvision_through_its_own_transforms(real_data, module_class, dataset_class):
    module = module_class(str(real_data), download=False, batch_size=20)
    inputs, targets = next(iter(module.test_dataloader()))
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(module.mean, module.std)])
    expected = dataset_class(real_data, train=False, transform=transform)
    for index in range(20):
        image, target = expected[index]
        torch.testing.assert_close(inputs[index], torch.as_tensor(image), rtol=1e-5, atol=1e-5)
        assert targets[index] == target


def test_validation_set_is_taken_from_the_training_set(real_data):
    module = MNISTDataModule(str(real_data), download=False, val_size=1000)
    assert [len(part) for part in module.splits] == [59000, 1000, 10000]
    together = torch.cat([module.splits.train.targets, module.splits.val.targets])
    everything = torchvision.datasets.MNIST(real_data).targets
    assert torch.equal(together.bincount(), everything.bincount())
    again = MNISTDataModule(str(real_data), download=False, val_size=1000)
    assert torch.equal(again.splits.val.images, module.splits.val.images)


def test_augmentation_touches_training_images_only(real_data):
    plain, augmented = (MNISTDataModule(str(real_data), download=False, augment=augment) for augment in (False, True))
    for name, same in (("train", False), ("val", True), ("test", True)):
        one, other = (getattr(module.splits, name).__getitems__(range(50))[0] for module in (plain, augmented))
        assert torch.equal(one, other) is same


def test_loading_a_batch_at_a_time_is_much_faster_than_an_image_at_a_time(real_data):
    module = MNISTDataModule(str(real_data), download=False)
    loader = module.train_dataloader()
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(module.mean, module.std)])
    plain = torchvision.datasets.MNIST(real_data, train=False, transform=transform)
    start = time.process_time()
    for index in range(1000):
        plain[index]
    one_by_one = (time.process_time() - start) / 1000
    start = time.process_time()
    seen = sum(len(targets) for _, targets in loader)
    assert seen == 55000 // 256 * 256
    assert (time.process_time() - start) / seen < one_by_one / 3


@pytest.mark.parametrize("module_class", [MNISTDataModule, FashionMNISTDataModule, CIFAR10DataModule])
def test_missing_folder_is_reported_with_the_fix(tmp_path, module_class):
    module = module_class(data_dir=str(tmp_path / "none"), download=False)
    module.prepare_data()
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/none/{module.folder}.*data_dir.*download to true"):
        module.setup("fit")


def test_validation_size_out_of_range_is_refused(real_data):
    with pytest.raises(ValueError, match="val_size=0"):
        MNISTDataModule(val_size=0)
    with pytest.raises(ValueError, match="less than 60000"):
        MNISTDataModule(str(real_data), download=False, val_size=60000).setup("fit")
