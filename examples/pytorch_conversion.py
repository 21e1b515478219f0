"""hbn in a PyTorch network: convert it, train it, fold it for inference, and give its weights back to PyTorch.

It reads scikit-learn's handwritten digits: `pip install . torch scikit-learn`, then
`python examples/pytorch_conversion.py`.
"""

import io
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import hbn.torch


class Block(nn.Module):
    """Two convolutions with batch normalization, and what came in added: a residual network's block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(z)) + x)


def network() -> nn.Module:
    """Of PyTorch's modules."""
    first = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*first, Block(16), nn.MaxPool2d(2), Block(16), nn.Flatten(), nn.Linear(16 * 4 * 4, 10))


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images that the model reads right."""
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).double().mean().item()


def main() -> int:
    """Prints what it does; 1 below 97 %."""
    torch.manual_seed(0)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    images = torch.tensor(digits.images, dtype=torch.float32)[order].unsqueeze(1) / 16
    labels = torch.tensor(digits.target)[order]
    test_images, test_labels, images, labels = images[:360], labels[:360], images[360:], labels[360:]

    model = hbn.torch.convert(network())  # the one line
    print("batch normalizations by hbn:", sum(isinstance(m, hbn.torch.BatchNorm2d) for m in model.modules()))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(6):
        model.train()
        for batch in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(
            f"epoch {epoch + 1}  loss {loss.item():.4f}  test accuracy {accuracy(model, test_images, test_labels):.2%}"
        )

    checkpoint = io.BytesIO()  # a file, in real life
    torch.save(model.state_dict(), checkpoint)
    checkpoint.seek(0)
    plain = network()  # PyTorch's modules read what hbn's wrote
    plain.load_state_dict(torch.load(checkpoint))
    print(f"by PyTorch, from the checkpoint: {accuracy(plain, test_images, test_labels):.2%}")

    before = model.eval()(test_images)
    fused = hbn.torch.fuse_conv_bn(model)  # for inference: the convolutions do it all
    print(f"folded into convolutions: outputs differ by {(fused(test_images) - before).abs().max():.1e}")
    return 0 if accuracy(fused, test_images, test_labels) >= 0.97 else 1


if __name__ == "__main__":
    sys.exit(main())
