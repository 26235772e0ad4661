"""Flickr30K Entities as published: sentences with marked phrases, XML with boxes of chains."""

import logging

import pytest

from hivg_hf.data.loading import load_grounding_dataset

SENTENCES = (
    "[/EN#1/people A young man] in [/EN#2/clothing/bodyparts a blue hat] looks [/EN#0/notvisual at it] .\n"
    "[/EN#1/people He] stands in [/EN#3/scene a yard] with [/EN#4/people two friends] .\n"
)
XML = """<annotation>
 <filename>1000092795.jpg</filename>
 <size><width>100</width><height>80</height><depth>3</depth></size>
 <object><name>1</name><bndbox><xmin>40</xmin><ymin>10</ymin><xmax>60</xmax><ymax>70</ymax></bndbox></object>
 <object><name>2</name><bndbox><xmin>45</xmin><ymin>10</ymin><xmax>55</xmax><ymax>20</ymax></bndbox></object>
 <object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>
 <object><name>4</name><name>5</name>
  <bndbox><xmin>5</xmin><ymin>20</ymin><xmax>25</xmax><ymax>70</ymax></bndbox></object>
 <object><name>4</name><bndbox><xmin>70</xmin><ymin>20</ymin><xmax>90</xmax><ymax>70</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def entities(tmp_path, make_image):
    (tmp_path / "Sentences").mkdir()
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "val.txt").write_text("1000092795\n")
    (tmp_path / "Sentences" / "1000092795.txt").write_text(SENTENCES)
    (tmp_path / "Annotations" / "1000092795.xml").write_text(XML)
    make_image(tmp_path / "flickr30k_images" / "1000092795.jpg", 100, 80)
    return tmp_path


def test_phrases_with_boxes_become_rows(entities, facts, caplog):
    with caplog.at_level(logging.INFO):
        rows = facts(load_grounding_dataset("flickr30k-entities", "val", root=entities))
    man, hat, friends = [40, 10, 60, 70], [45, 10, 55, 20], [[5, 20, 25, 70], [70, 20, 90, 70]]
    assert [(row["expression"], row["box"], row["boxes"]) for row in rows] == [
        ("A young man", man, [man]),
        ("a blue hat", hat, [hat]),
        ("He", man, [man]),
        ("two friends", None, friends),
    ]
    assert [row["sent_id"] for row in rows] == [f"1000092795:{place}" for place in ("0:0", "0:1", "1:0", "1:2")]
    assert [row["ref_id"] for row in rows] == [f"1000092795:{chain}" for chain in (1, 2, 1, 4)]
    assert [row["category"] for row in rows] == ["people", "clothing/bodyparts", "people", "people"]
    assert (rows[0]["image"], rows[0]["width"], rows[0]["height"]) == ("1000092795.jpg", 100, 80)
    assert "1 phrases have no box" in caplog.text
    assert "4 expressions of 3 objects in 1 images" in caplog.text


def test_several_boxes_of_a_phrase_are_united_when_asked(entities):
    rows = load_grounding_dataset("flickr30k-entities", "val", root=entities, multi_target="union")
    assert rows["box"][3] == [5, 20, 90, 70]


def test_a_damaged_annotation_file_is_named(entities):
    (entities / "Annotations" / "1000092795.xml").write_text("<html><body>404")
    with pytest.raises(ValueError, match=r"1000092795\.xml is not an annotation file of Flickr30K Entities"):
        load_grounding_dataset("flickr30k-entities", "val", root=entities)
