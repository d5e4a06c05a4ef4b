"""The page and its elements: complete, escaped, without requests to other files."""

from __future__ import annotations

import re

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.reporting.about import about_sections
from emu_jax.reporting.page import Section, facts_table, image_tag, render_page, write_page
from tests.reporting.html_check import checked

IMAGE = np.zeros((4, 4, 3), np.uint8)


def test_sections_without_a_body_are_left_out():
    page = checked(render_page([Section("A & B", "<p>a</p>"), Section("C", "")], title="<t>", lead="1 < 2"))
    assert page.count("<section") == 1
    assert "A &amp; B" in page
    assert "<title>&lt;t&gt;</title>" in page
    assert "1 &lt; 2" in page


def test_without_a_config_there_is_no_configuration():
    config, versions = about_sections()
    assert config.body == ""
    assert "Python" in versions.body


def test_facts_are_escaped():
    assert "&lt;b&gt;" in facts_table({"a": "<b>"})
    assert facts_table({}) == ""


def test_a_page_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write_page(tmp_path / "file" / "report.html", [Section("A", "<p>a</p>")], title="t", lead="l")


def test_images_are_embedded():
    assert re.fullmatch(
        r'<img src="data:image/png;base64,iVBOR[^"]+" alt="a &quot;b&quot;">', image_tag(IMAGE, alt='a "b"')
    )
