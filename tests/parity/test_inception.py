"""FID's Inception in Flax against a plain torch copy of its layers, with random weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from emu_jax.evaluation.image_metrics.inception import Inception  # noqa: E402
from emu_jax.evaluation.image_metrics.inception_table import inception_table, load_inception  # noqa: E402


class Reference:
    """The network of pytorch-fid, written with torch's functions and its parameter names."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state

    def conv(self, x, name, stride=1, padding=0):
        s = self.state
        x = F.conv2d(x, s[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, var = s[f"{name}.bn.running_mean"], s[f"{name}.bn.running_var"]
        return F.relu(F.batch_norm(x, mean, var, s[f"{name}.bn.weight"], s[f"{name}.bn.bias"], eps=0.001))

    def chain(self, x, block, *steps):
        for name, padding in steps:
            x = self.conv(x, f"{block}.{name}", padding=padding)
        return x

    def average(self, x):
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def a(self, x, b):
        one = self.chain(x, b, ("branch1x1", 0))
        five = self.chain(x, b, ("branch5x5_1", 0), ("branch5x5_2", 2))
        three = self.chain(x, b, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1), ("branch3x3dbl_3", 1))
        return torch.cat([one, five, three, self.chain(self.average(x), b, ("branch_pool", 0))], 1)

    def b(self, x, b):
        three = self.conv(x, f"{b}.branch3x3", stride=2)
        double = self.chain(x, b, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
        double = self.conv(double, f"{b}.branch3x3dbl_3", stride=2)
        return torch.cat([three, double, F.max_pool2d(x, 3, stride=2)], 1)

    def c(self, x, b):
        row, column = (0, 3), (3, 0)
        one = self.chain(x, b, ("branch1x1", 0))
        seven = self.chain(x, b, ("branch7x7_1", 0), ("branch7x7_2", row), ("branch7x7_3", column))
        double = self.chain(
            x, b, ("branch7x7dbl_1", 0), ("branch7x7dbl_2", column), ("branch7x7dbl_3", row),
            ("branch7x7dbl_4", column), ("branch7x7dbl_5", row),
        )  # fmt: skip
        return torch.cat([one, seven, double, self.chain(self.average(x), b, ("branch_pool", 0))], 1)

    def d(self, x, b):
        three = self.conv(self.conv(x, f"{b}.branch3x3_1"), f"{b}.branch3x3_2", stride=2)
        seven = self.chain(x, b, ("branch7x7x3_1", 0), ("branch7x7x3_2", (0, 3)), ("branch7x7x3_3", (3, 0)))
        seven = self.conv(seven, f"{b}.branch7x7x3_4", stride=2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)

    def e(self, x, b, pool):
        one = self.chain(x, b, ("branch1x1", 0))
        three = self.chain(x, b, ("branch3x3_1", 0))
        double = self.chain(x, b, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
        split = [(three, "branch3x3_2"), (double, "branch3x3dbl_3")]
        pairs = [self.conv(y, f"{b}.{n}{s}", padding=p) for y, n in split for s, p in (("a", (0, 1)), ("b", (1, 0)))]
        return torch.cat([one, *pairs, self.chain(pool(x), b, ("branch_pool", 0))], 1)

    def __call__(self, pixels):
        x = (pixels - 128) / 128
        x = self.conv(x, "Conv2d_1a_3x3", stride=2)
        x = self.conv(self.conv(x, "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=1)
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, stride=2)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.a(x, name)
        x = self.b(x, "Mixed_6a")
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.c(x, name)
        x = self.e(self.d(x, "Mixed_7a"), "Mixed_7b", self.average)
        x = self.e(x, "Mixed_7c", lambda y: F.max_pool2d(y, 3, stride=1, padding=1))
        return x.mean(dim=(2, 3))


def test_features_equal_torchs(tmp_path):
    rng = np.random.default_rng(0)
    state = {}
    for row in inception_table():
        shape = row.torch_shape
        if row.torch.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif row.torch.endswith("conv.weight"):
            value = rng.normal(scale=np.sqrt(2 / np.prod(shape[1:])), size=shape)
        else:
            value = rng.normal(scale=0.1, size=shape) + row.torch.endswith("bn.weight")
        state[row.torch] = torch.tensor(value, dtype=torch.float32)
    extra = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save(state | extra, tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    params = load_inception(tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    pixels = rng.uniform(0, 255, (2, 3, 299, 299)).astype(np.float32)
    with torch.no_grad():
        expected = Reference(state)(torch.from_numpy(pixels)).numpy()
    features = jax.jit(Inception().apply)({"params": params}, pixels.transpose(0, 2, 3, 1))
    assert features.shape == (2, 2048)
    assert expected.std() > 0.01
    np.testing.assert_allclose(features, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())
