"""A small network trained on scikit-learn's handwritten digits with PyTorch's batch normalization and with hbn's."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import hbn.torch

EPOCHS, BATCH, TEST_IMAGES = 8, 64, 360


def digits(dtype):
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=dtype)[order].unsqueeze(1) / 16
    return images, torch.tensor(data.target)[order]


def network():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


def train(convert, dtype, memory_format):
    """The loss of each step, and the accuracy on images that were not trained on."""
    torch.manual_seed(1)
    model = convert(network().to(dtype, memory_format=memory_format))
    images, labels = digits(dtype)
    training_images, training_labels = images[TEST_IMAGES:], labels[TEST_IMAGES:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for epoch in range(EPOCHS):
        shuffled = torch.randperm(len(training_labels), generator=torch.Generator().manual_seed(epoch))
        for batch in shuffled.split(BATCH):
            loss = nn.functional.cross_entropy(
                model(training_images[batch].contiguous(memory_format=memory_format)), training_labels[batch]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        right = model(images[:TEST_IMAGES]).argmax(1) == labels[:TEST_IMAGES]
    return torch.tensor(losses, dtype=torch.float64), right.double().mean().item()


@pytest.fixture
def one_thread():
    # Which is as quick for tensors of this size, and does not wait where something else has the other processors.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Losses are means of 64, of size 2.4 and falling, and each step adds a few roundoffs, which training does not enlarge
# as long as it is smooth: 16 of them, of the first loss. It is not where a ReLU's input is so near 0 that roundoff
# decides its sign: from then on that pixel's gradient is another one, and losses differ by 1e-5 to 1e-3, those of
# PyTorch from itself, too, where its weights start one roundoff apart. In float32 that happens in every second
# training, after 30 steps or more, so that only the first 20 are compared; in float64 it would in one of 10^8.
@pytest.mark.parametrize("dtype, steps", [(torch.float64, None), (torch.float32, 20)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_losses_agree_and_both_read_digits(memory_format, dtype, steps, one_thread):
    theirs, their_accuracy = train(lambda model: model, dtype, memory_format)
    ours, our_accuracy = train(hbn.torch.convert, dtype, memory_format)
    assert len(ours) > 150
    unit = torch.finfo(dtype).eps / 2
    assert (ours - theirs)[:steps].abs().max() <= 16 * unit * theirs[0]
    assert their_accuracy >= 0.97 and our_accuracy >= 0.97
