import base64
import hashlib

import jinja2
import pytest
from markupsafe import Markup

from research.drawing.templates import fill, source_hash

HOSTILE = "</script><script>alert(1)</script> \"quoted\" 'too' & {{ 7 * 7 }} {% raw %}"


def filled(folder, template, **values):
    (folder / "page.html").write_text(template, encoding="utf-8")
    return fill(folder / "page.html", values)


def test_texts_are_escaped_and_never_templates(tmp_path):
    found = filled(tmp_path, '<p title="{{ x }}">{{ x }}</p>', x=HOSTILE)
    assert "<script>" not in found and "{{ 7 * 7 }}" in found and "49" not in found
    assert found.count('"') == 2 and "&#34;quoted&#34; &#39;too&#39; &amp;" in found


def test_markup_stays_and_nothing_is_nothing(tmp_path):
    found = filled(tmp_path, "{{ a }}{{ b }}{{ c }}", a=Markup("<b>"), b=None, c=0)
    assert found == "<b>0"


def test_macros_of_other_files_escape_too(tmp_path):
    (tmp_path / "parts.html").write_text("{% macro cell(x) %}<td>{{ x }}</td>{% endmacro %}")
    found = filled(tmp_path, '{% import "parts.html" as parts %}{{ parts.cell(x) }}', x="<i>")
    assert found == "<td>&lt;i&gt;</td>"


def test_a_name_without_a_value_is_an_error(tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="'titel'"):
        filled(tmp_path, "{{ titel }}", title="x")


def test_hash_of_a_source():
    kind, _, digest = source_hash("let é = 1;").partition("-")
    assert kind == "sha256"
    assert base64.b64decode(digest) == hashlib.sha256("let é = 1;".encode()).digest()
