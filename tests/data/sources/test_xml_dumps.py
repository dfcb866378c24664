import bz2

import pytest

from nbllm.core.errors import DataError, SkippedWarning, UserError
from nbllm.data import load
from nbllm.data.sources.wikitext import wikitext_to_text

WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">
  <siteinfo><sitename>Wikipedia</sitename></siteinfo>
  <page><title>Cat &amp; dog</title><ns>0</ns><id>1</id>
    <revision><text bytes="9" xml:space="preserve">{{Short|x}}'''Cats''' chase [[Dog|dogs]].&lt;ref&gt;a&lt;/ref&gt;

== Life ==
* They [[sleep]]ing</text></revision></page>
  <page><title>Talk:Cat</title><ns>1</ns><revision><text>talk</text></revision></page>
  <page><title>Kitty</title><ns>0</ns><redirect title="Cat" /><revision><text>#REDIRECT [[Cat]]</text></revision></page>
  <page><title>世界</title><ns>0</ns><revision><text>Grüße, 世界</text></revision></page>
</mediawiki>
"""
POSTS = """<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="1" PostTypeId="1" Score="5" Title="Why &lt;b&gt;?" Body="&lt;p&gt;I ask.&lt;/p&gt;" />
  <row Id="2" PostTypeId="2" ParentId="1" Score="-1" Body="&lt;p&gt;Bad answer&lt;/p&gt;" />
  <row Id="3" PostTypeId="2" ParentId="1" Score="3" Body="&lt;p&gt;Good &amp;amp; short&lt;/p&gt;" />
  <row Id="4" PostTypeId="5" Score="9" Body="wiki of a tag" />
</posts>
"""


@pytest.mark.parametrize("pack", [False, True])
def test_articles_of_wikipedia_become_plain_text(tmp_path, pack):
    path = tmp_path / ("enwiki-latest-pages-articles.xml" + ".bz2" * pack)
    path.write_bytes(bz2.compress(WIKI.encode()) if pack else WIKI.encode())
    data = load(path)
    assert data["source"][:] == ["Cat & dog", "世界"]
    assert data["text"][:] == ["Cats chase dogs.\n\nLife\nThey sleeping", "Grüße, 世界"]


def test_posts_of_stackexchange_are_read_by_score(tmp_path):
    (tmp_path / "Posts.xml").write_text(POSTS)
    data = load(tmp_path / "Posts.xml")
    assert data["text"][:] == ["Why <b>?\n\nI ask.", "Bad answer", "Good & short"]
    best = load(tmp_path / "Posts.xml", min_score=3)
    assert best["source"][:] == ["question 1", "answer 3"]
    with pytest.raises(UserError, match="min_score"):
        load(tmp_path / "Posts.xml", min_score=1.5)


def test_other_xml_is_text(tmp_path):
    (tmp_path / "a.xml").write_text("<note>text</note>")
    assert load(tmp_path / "a.xml")["text"][:] == ["<note>text</note>"]
    with pytest.raises(UserError, match="min_score=3 has no meaning"):
        (tmp_path / "b.txt").write_text("text")
        load(tmp_path / "b.txt", min_score=3)


def test_damaged_and_hostile_dumps_are_named(tmp_path):
    path = tmp_path / "wiki.xml"
    path.write_text(WIKI[: len(WIKI) // 2])
    with pytest.raises(DataError, match=r"not XML(.|\n)*line"):
        load(path)
    path.write_bytes(bz2.compress(WIKI.encode())[:-20])
    path = path.rename(tmp_path / "wiki.xml.bz2")
    with pytest.raises(DataError, match="archive"):
        load(path)
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>' + WIKI.replace("Cats", "&b;")
    (tmp_path / "bomb.xml").write_text(bomb)
    with pytest.raises(DataError, match="declares entities"):
        load(tmp_path / "bomb.xml")
    (tmp_path / "wiki.xml").write_text(WIKI.replace("</mediawiki>", "<broken"))
    with pytest.warns(SkippedWarning, match="invalid XML"):
        assert len(load(tmp_path / "wiki.xml", on_error="skip")) == 2


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("a {{t|{{u|x}}|y}} b", "a  b"),
        ("x {| class=a\n|-\n| cell {{t}}\n|} y", "x  y"),
        ("[[File:a.jpg|thumb|a [[link]] inside]]text", "text"),
        ("[[Category:Cats]][[Kategorie:X]]seen", "seen"),
        ("[[:Category:Cats]] [[a|b]] [[c]]s", "Category:Cats b cs"),
        ("see [https://x.example the site] or [https://y.example]", "see the site or"),
        ("a<ref name=x>gone</ref>b<ref name=y />c<br/>d", "abcd"),
        ("<!-- gone -->kept<!-- never closed", "kept<!-- never closed"),
        ("''i'' '''b''' '''''both''''' it's", "i b both it's"),
        ("== Head ==\ntext\n\n\n\nmore\n----\n# one\n:: two", "Head\ntext\n\nmore\n\none\ntwo"),
        ("a &nbsp;&amp; b &lt;i&gt;", "a  & b <i>"),
        ("{{never closed", "{{never closed"),
        ("}} ]] stray |}", "}} ]] stray |}"),
        ("{{a|b=|}}after", "after"),
        ("{{a|{|\n|x\n|}}}after", "after"),
        ("__NOTOC__x", "x"),
        ("", ""),
    ],
)
def test_markup(markup, text):
    assert wikitext_to_text(markup) == text


@pytest.mark.timeout(60)  # a quadratic step would take hours
def test_bait_takes_linear_time():
    for bait in ("[[", "{{", "[[a|", "<ref>", "<", "==", "''", "[//", "{|", "{{|}", "]]", "<!--", "=a", "* "):
        assert isinstance(wikitext_to_text(bait * 100_000 + "x"), str)
