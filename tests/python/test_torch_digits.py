"""A small network trained on scikit-learn's handwritten digits with PyTorch's batch normalization and with hbn's."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import hbn.torch

EPOCHS, BATCH, TEST_IMAGES = 8, 64, 360


def digits():
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order].unsqueeze(1) / 16
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


def train(convert, memory_format):
    """The loss of each step, and the accuracy on images that were not trained on."""
    torch.manual_seed(1)
    model = convert(network()).to(memory_format=memory_format)
    images, labels = digits()
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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_losses_agree_and_both_read_digits(memory_format):
    theirs, their_accuracy = train(lambda model: model, memory_format)
    ours, our_accuracy = train(hbn.torch.convert, memory_format)
    # Each step starts a float32 rounding (2^-24) apart; while the loss falls, training multiplies what is there by a
    # factor near 1 each step. 200 steps of a few roundings each are 2^-24 * 1000 = 6e-5, of losses up to 2.4; early
    # steps, with few roundings behind them, agree to 1e-6.
    assert len(ours) > 150
    assert (ours[:10] - theirs[:10]).abs().max() <= 1e-6 * theirs[0]
    assert (ours - theirs).abs().max() <= 6e-5 * theirs[0]
    assert their_accuracy >= 0.97 and our_accuracy >= 0.97
