"""Agreement with diffusers on a small decoder in float32, within 1e-4 of the scale of each array."""

import jax
import jax.numpy as jnp
import numpy as np

from emu_jax.convert.visual_decoder import load_visual_decoder, save_visual_decoder
from emu_jax.diffusion.schedule import add_noise


def last(array: np.ndarray) -> np.ndarray:
    """Return `array` with its channels last."""
    return np.moveaxis(array, -3, -1)


def assert_within(ours: object, theirs: np.ndarray, scale: float = 1e-4) -> None:
    assert np.shape(ours) == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= scale * np.abs(theirs).max()


def test_predict_noise(reference_decoder, expected):
    noise = reference_decoder.predict_noise(last(expected["latents"]), expected["timesteps"], expected["context"])
    assert noise.dtype == jnp.float32
    assert_within(noise, last(expected["noise_pred"]))


def test_encode(reference_decoder, expected):
    mean, log_variance = reference_decoder.encode(last(expected["image"]))
    assert_within(mean, last(expected["posterior_mean"]))
    assert_within(log_variance, last(expected["posterior_logvar"]))


def test_decode(reference_decoder, expected):
    assert_within(reference_decoder.decode(last(expected["latents"])), last(expected["decoded"]))


def test_add_noise(reference_decoder, expected):
    latents, noise = (jnp.asarray(last(expected[name])) for name in ("latents", "noise"))
    noisy = add_noise(reference_decoder.schedule, latents, noise, jnp.asarray(expected["timesteps"]))
    assert_within(noisy, last(expected["noisy"]))


def test_guided_pndm_trajectory_and_image(reference_decoder, expected):
    context = expected["context"]
    output = reference_decoder.sample(
        context[:1], context[1:], latents=last(expected["init_latents"]), steps=12, return_trajectory=True
    )
    theirs = last(expected["pndm_trajectory"])
    assert output.trajectory.shape == theirs.shape
    for ours, step in zip(output.trajectory, theirs, strict=True):
        assert_within(ours, step)
    np.testing.assert_array_equal(output.latents, output.trajectory[-1])
    image = np.clip(reference_decoder.decode(output.latents) / 2 + 0.5, 0, 1)
    assert_within(image, expected["pndm_image"])


def test_guided_ddim(reference_decoder, expected):
    context = expected["context"]
    output = reference_decoder.sample(
        context[:1], context[1:], latents=last(expected["init_latents"]), sampler="ddim", steps=12
    )
    assert output.trajectory is None
    assert_within(output, last(expected["ddim_latents"]))


def test_a_saved_folder_is_read_back_equal(reference_decoder, reference_folder, tmp_path):
    from safetensors.numpy import load_file

    save_visual_decoder(reference_decoder, tmp_path / "decoder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder"]
    again = load_visual_decoder(tmp_path / "decoder")
    assert (again.unet, again.vae, again.schedule) == (
        reference_decoder.unet,
        reference_decoder.vae,
        reference_decoder.schedule,
    )
    jax.tree.map(np.testing.assert_array_equal, again.params, reference_decoder.params)
    for part in ("unet", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        ours, theirs = load_file(tmp_path / "decoder" / name), load_file(reference_folder / name)
        assert ours.keys() == theirs.keys()
        for key, array in theirs.items():
            np.testing.assert_array_equal(ours[key], array)


def test_projections_for_another_width_are_initialized(reference_folder, reference_decoder):
    wide = load_visual_decoder(reference_folder, cross_attention_dim=48)
    assert wide.unet.config.cross_attention_dim == 48
    assert len(wide.initialized) == 32  # sixteen cross-attentions, a key and a value each
    assert all(".attn2.to_" in name for name in wide.initialized)
    old, new = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(d.params["unet"])}
        for d in (reference_decoder, wide)
    )
    changed = {name for name in old if old[name].shape != new[name].shape}
    assert len(changed) == 32
    assert all(new[name].shape[0] == 48 and np.std(new[name]) > 0 for name in changed)
    for name in set(old) - changed:
        np.testing.assert_array_equal(old[name], new[name])
