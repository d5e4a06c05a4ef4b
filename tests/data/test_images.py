"""Images of all accepted formats decode to the right pixels, or fail with one clear reason."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from emu_jax.data.images import FORMATS, DecodeError, decode, encode_png, normalize, preprocess, resize, resize_and_crop
from emu_jax.data.limits import DEFAULT_LIMITS, Limits
from emu_jax.errors import UserError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def checker(width=24, height=16):
    """Return an image with a red left half, a blue right half and a white dot at the top left."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    pixels[:2, :2] = 255
    return pixels


def test_pixels_match_the_release(shared_dir):
    """The tolerance is the rounding error of float16 for values up to 3."""
    expected = np.load(shared_dir / "reference" / "preprocessed_images.npz")
    names = [name for name in expected if not name.startswith("video")]
    assert len(names) >= 4
    for name in names:
        pixels = normalize(preprocess(shared_dir / "samples" / name, 224))
        np.testing.assert_allclose(pixels.transpose(2, 0, 1), expected[name], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("width", "height", "rows_first"), [(40, 60, False), (40, 64, False), (40, 65, True), (9, 30, True)]
)
def test_resize_order_does_not_depend_on_the_pillow_version(width, height, rows_first):
    """Rows are resized first if the height shrinks by more than twice as many pixels as the width."""
    size, bicubic = 16, PIL.Image.Resampling.BICUBIC
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    by_rows, by_columns = (
        np.asarray(PIL.Image.fromarray(noise).resize(first, bicubic).resize((size, size), bicubic))
        for first in [(width, size), (size, height)]
    )
    assert (by_rows != by_columns).any()
    np.testing.assert_array_equal(resize(noise, size), by_rows if rows_first else by_columns)
    np.testing.assert_array_equal(preprocess(encode_png(noise), size), resize(noise, size))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(kind):
    image = PIL.Image.fromarray(checker())
    np.testing.assert_array_equal(decode(encoded(image, kind)), checker())
    np.testing.assert_array_equal(decode(image), checker())
    np.testing.assert_array_equal(decode(checker()), checker())


def test_png_is_lossless():
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    np.testing.assert_array_equal(decode(encode_png(noise)), noise)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_are_close(kind):
    smooth = np.zeros((32, 32, 3), np.uint8) + np.arange(0, 160, 5, dtype=np.uint8)[:, None, None]
    data = encoded(PIL.Image.fromarray(smooth), kind, quality=95)
    assert np.abs(decode(data).astype(int) - smooth).max() < 12


def test_paths(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(checker()))
    np.testing.assert_array_equal(decode(path), checker())
    np.testing.assert_array_equal(decode(str(path)), checker())


def photo(width, height, seed=0):
    """Return an image with large and small structures."""
    rng, pixels = np.random.default_rng(seed), np.zeros((height, width, 3), np.float32)
    for side in (4, 8):
        coarse = rng.normal(0, 60 / np.log2(side), (side, side, 3)).astype(np.float32)
        layers = [PIL.Image.fromarray(coarse[..., c]).resize((width, height)) for c in range(3)]
        pixels += np.stack([np.asarray(layer) for layer in layers], axis=-1)
    return PIL.Image.fromarray(np.clip(pixels + 128, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(64, 80), (65, 130), (127, 99), (300, 260), (640, 480)])
def test_reduced_decoding_is_close_and_used_only_for_images_twice_as_large(size):
    data = encoded(photo(*size), "JPEG", quality=95)
    exact, reduced = preprocess(data, 32), preprocess(data, 32, exact=False)
    error = np.abs(exact.astype(int) - reduced)
    assert 0 < error.mean() < 3
    assert decode(data, at_least=32).shape[0] < size[1] / 1.9
    assert min(decode(data, at_least=32).shape[:2]) >= 32
    small = encoded(photo(63, 200), "JPEG", quality=95)
    np.testing.assert_array_equal(preprocess(small, 32), preprocess(small, 32, exact=False))


def test_only_jpegs_are_decoded_at_a_reduced_scale():
    image = photo(200, 160)
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        data = encoded(image, kind)
        np.testing.assert_array_equal(preprocess(data, 32), preprocess(data, 32, exact=False))
    np.testing.assert_array_equal(preprocess(image, 32), preprocess(image, 32, exact=False))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_reduced_decoding_supports_all_jpeg_modes(mode):
    data = encoded(photo(200, 160).convert(mode), "JPEG", quality=95)
    assert np.abs(preprocess(data, 32).astype(int) - preprocess(data, 32, exact=False)).mean() < 3


def test_reduced_decoding_applies_exif_rotation_and_detects_truncation():
    stored = PIL.Image.fromarray(np.repeat(np.repeat(checker(), 16, 0), 16, 1)).transpose(PIL.Image.Transpose(3))
    exif = PIL.Image.Exif()
    exif[0x112] = 3
    data = encoded(stored, "JPEG", quality=95, exif=exif)
    pixels = preprocess(data, 32, exact=False)
    assert pixels[16, 4].tolist() == pytest.approx(RED, abs=12)
    assert pixels[16, 28].tolist() == pytest.approx((0, 0, 255), abs=12)
    with pytest.raises(DecodeError, match="cannot be decoded"):
        preprocess(data[: len(data) // 2], 32, exact=False)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    """An image stored with an EXIF orientation is returned upright."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the PIL.Image.Transpose that gives this orientation
    stored = PIL.Image.fromarray(checker())
    if orientation > 1:
        stored = stored.transpose(PIL.Image.Transpose(undo[orientation]))
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    np.testing.assert_array_equal(decode(encoded(stored, "PNG", exif=exif)), checker())


def test_cmyk():
    red = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decode(encoded(red, "JPEG")).astype(int) - RED).max() < 30


def test_sixteen_bit_images_are_scaled_not_clipped():
    gray = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = decode(encoded(PIL.Image.fromarray(gray), "PNG"))
    np.testing.assert_array_equal(pixels[..., 0], (gray >> 8).astype(np.uint8))
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_palettes_and_black_and_white():
    image = PIL.Image.fromarray(checker())
    np.testing.assert_array_equal(decode(encoded(image.quantize(8), "PNG")), checker())
    one_bit = PIL.Image.new("1", (16, 16), 1)
    assert (decode(encoded(one_bit, "PNG")) == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composited_over_white(mode):
    image = PIL.Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 8, 16))
    if mode == "P":
        image = PIL.Image.new("P", (16, 16), 0)
        image.putpalette([*RED, 0, 0, 0])
        image.paste(1, (8, 0, 16, 16))
        data = encoded(image, "PNG", transparency=1)
    else:
        data = encoded(image.convert(mode), "PNG")
    pixels = decode(data)
    assert tuple(pixels[3, 12]) == WHITE
    assert tuple(pixels[3, 3]) != WHITE


def test_first_frame_of_an_animation():
    frames = [PIL.Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == RED).all()


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(20_000, 10), (10, 20_000), (16_000, 16_000), (8_000, 8_000), (9_500, 9_500)])
def test_decompression_bombs_are_refused_before_decoding(size):
    with pytest.raises(DecodeError, match="pixels"):
        decode(png_header(*size))


def test_largest_allowed_side():
    wide = np.zeros((2, DEFAULT_LIMITS.image_side, 3), np.uint8)
    assert decode(encode_png(wide)).shape == (2, DEFAULT_LIMITS.image_side, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is a text file named .jpg", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded(PIL.Image.fromarray(checker(640, 640)), "JPEG")[:-2000], "cannot be decoded"),
        (encode_png(checker())[:60], "cannot be decoded"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.float32), r"uint8 \[H, W, 3\], not float32"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        ("no/such/file.jpg", "cannot be read"),
    ],
)
def test_invalid_images_raise_a_clear_error(data, reason):
    with pytest.raises(DecodeError, match=reason) as caught:
        decode(data)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_thousand_damaged_files_never_crash():
    rng = np.random.default_rng(0)
    image = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 20, 3), np.uint8))
    files = [encoded(image, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    outcomes = {"image": 0, "refused": 0}
    for i in range(1000):
        data = bytearray(files[i % len(files)])
        for position in rng.integers(0, len(data), rng.integers(1, 8)):
            data[position] = rng.integers(0, 256)
        if i % 3 == 0:
            data = data[: rng.integers(0, len(data))]
        try:
            pixels = decode(bytes(data))
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            outcomes["image"] += 1
        except DecodeError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes


def test_normalize():
    pixels = np.full((2, 3, 4, 3), 255, np.uint8)
    expected = (1 - np.array([0.48145466, 0.4578275, 0.40821073])) / [0.26862954, 0.26130258, 0.27577711]
    out = normalize(pixels)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[1, 2, 3], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["icc.png", "itxt.png", "ztxt.png"])
def test_png_with_large_metadata(cases, name):
    expected = decode(cases / "png_metadata" / "ok.png")
    np.testing.assert_array_equal(decode((cases / "png_metadata" / name).read_bytes()), expected)
    with pytest.raises(DecodeError):
        decode((cases / "png_metadata" / name).read_bytes()[:-60])


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("after_pixels", [False, True])
def test_png_with_megabytes_of_text_and_exif_rotation(after_pixels):
    """The text is skipped, the rotation is applied."""
    exif = PIL.Image.Exif()
    exif[0x112] = 3
    data = encoded(PIL.Image.fromarray(checker()), "PNG", exif=exif)
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 5_000_000))
    text += png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"b" * 5_000_000))
    at = data.index(b"IEND") - 4 if after_pixels else data.index(b"IDAT") - 4
    np.testing.assert_array_equal(decode(data[:at] + text + data[at:]), checker()[::-1, ::-1])


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow cannot read AVIF")
def test_avif():
    smooth = np.zeros((32, 32, 3), np.uint8) + np.arange(0, 160, 5, dtype=np.uint8)[:, None, None]
    data = encoded(PIL.Image.fromarray(smooth), "AVIF", quality=95)
    assert np.abs(decode(data).astype(int) - smooth).max() < 12


def test_jpeg_with_too_many_scans():
    """Copies of one scan: a few kilobytes that would take minutes to decode."""
    data = encoded(PIL.Image.fromarray(checker(640, 640)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    bomb = data[:start] + data[start:-2] * 3000 + data[-2:]
    with pytest.raises(DecodeError, match="the JPEG has too many scans"):
        decode(bomb)
    assert decode(data).shape == (640, 640, 3)
    with pytest.raises(DecodeError, match="the JPEG has too many scans"):
        decode(data, limits=Limits(image_scans=2))


def test_decoder_images_keep_their_aspect():
    """The shorter side is resized and the center cropped: a circle stays a circle."""
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 200  # the central square
    cropped = resize_and_crop(image, 20)
    assert cropped.shape == (20, 20, 3)
    assert cropped.min() > 150
    assert resize_and_crop(image.transpose(1, 0, 2), 20).min() > 150
    assert resize_and_crop(image[:, :40], 40).shape == (40, 40, 3)
