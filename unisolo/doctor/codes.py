"""Everything that the doctor can find: codes are stable, texts may change."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["CODES", "Code", "Severity"]


class Severity(str, Enum):
    """How bad a finding is: an error stops a training or poisons it, a note is only said."""

    error = "error"
    warning = "warning"
    note = "note"


class Code(NamedTuple):
    """One kind of fault.

    Attributes:
        severity: How bad it is.
        what: What is wrong.
        fix: What to do about it.
        mend: What `--fix` does; empty where it leaves things as they are.
    """

    severity: Severity
    what: str
    fix: str
    mend: str = ""


_E, _W, _N = Severity.error, Severity.warning, Severity.note
_IMAGE_GOES = "image dropped with its annotations"
_PNG_GOES = "image dropped from the panoptic file"
_ANNOTATION_GOES = "annotation dropped"

CODES: dict[str, Code] = {
    # --- files ---
    "json-unusable": Code(_E, "an annotation file is missing or damaged", "write it again"),
    "folder-missing": Code(_E, "a folder of the layout is missing", "make it, or name the split"),
    # --- images ---
    "image-entry": Code(
        _E,
        "an image entry lacks something",
        "give id, file_name, height and width",
        "size taken from the image; without id or file_name dropped with its annotations",
    ),
    "image-id-twice": Code(
        _E,
        "two image entries have one id, so their annotations cannot be told apart",
        "number them anew",
        "a repeated entry dropped; entries for different files dropped with their annotations",
    ),
    "image-outside": Code(
        _E, "a file_name leaves the data folder", "write a path inside it", _IMAGE_GOES
    ),
    "image-missing": Code(_E, "an image file is missing", "copy it there", _IMAGE_GOES),
    "image-empty": Code(_E, "an image file has 0 bytes", "copy it again", _IMAGE_GOES),
    "image-damaged": Code(
        _E, "an image file is truncated or damaged", "copy it again", _IMAGE_GOES
    ),
    "image-unreadable": Code(
        _E, "a file is no image that Pillow reads", "convert it to JPEG or PNG", _IMAGE_GOES
    ),
    "image-pixels": Code(
        _E, "an image has a kind or number of pixels not taken", "convert it", _IMAGE_GOES
    ),
    "image-size": Code(
        _E,
        "the JSON file gives another size than the upright image has",
        "correct the JSON file, or annotate the upright image",
        "size taken from the image",
    ),
    "image-file-twice": Code(
        _W, "two image entries name one file", "leave one, with the annotations of both"
    ),
    "image-unlisted": Code(
        _N, "a file in the image folder is not in the JSON file", "add or remove it", "not copied"
    ),
    # --- categories ---
    "category-entry": Code(
        _E,
        "a category lacks a whole-number id or a name, or its colour is none",
        "mend it",
        "what is no colour dropped; without id or name the category dropped",
    ),
    "category-none": Code(_E, "there is no category to learn", "list them under 'categories'"),
    "category-id-twice": Code(
        _E, "two categories have one id", "number them anew", "the later category dropped"
    ),
    "category-name-twice": Code(_W, "two categories have one name", "rename or join them"),
    "category-isthing": Code(
        _E,
        "a panoptic category does not say isthing",
        "write 1 for things, 0 for stuff",
        "thing if the instances file has it or an image has it twice, else stuff",
    ),
    "category-unused": Code(_N, "a category is never used", "fine, if meant"),
    "category-ids-gaps": Code(_N, "category ids are not 1, 2, 3, ...", "nothing: they are fine"),
    "category-unknown": Code(
        _E,
        "an annotation has a category that is not listed",
        "add the category or remove the annotation",
        "annotation dropped; a segment's pixels become void",
    ),
    # --- annotations of objects ---
    "annotation-entry": Code(
        _E, "an annotation lacks something", "write it again", _ANNOTATION_GOES
    ),
    "annotation-id-twice": Code(
        _E, "two annotations have one id", "number them anew", "the later one numbered anew"
    ),
    "annotation-id": Code(
        _W,
        "an annotation has no whole number above 0 as id; evaluators take 0 for 'no match'",
        "number it",
        "numbered",
    ),
    "annotation-image-unknown": Code(
        _E,
        "an annotation is of an image that is not listed",
        "add the image or remove the annotation",
        _ANNOTATION_GOES,
    ),
    "crowd-kind": Code(
        _E, "iscrowd is neither 0 nor 1", "write one of them", "annotation or segment dropped"
    ),
    "mask-missing": Code(
        _W,
        "an annotation has no mask: the object is taught as background",
        "draw its mask, or mark the region as crowd",
        _ANNOTATION_GOES,
    ),
    "masks-none": Code(
        _E,
        "no annotation of the file has a mask; boxes alone cannot train a mask model",
        "draw masks",
        "annotations dropped",
    ),
    "mask-empty": Code(_W, "a mask encloses no pixel", "remove or redraw it", _ANNOTATION_GOES),
    "mask-kind": Code(
        _E, "a segmentation is neither RLE nor polygons", "write it again", _ANNOTATION_GOES
    ),
    "rle-size": Code(
        _E, "an RLE is of another size than its image", "encode it anew", _ANNOTATION_GOES
    ),
    "rle-damaged": Code(_E, "an RLE has damaged counts", "encode it anew", _ANNOTATION_GOES),
    "polygon-odd": Code(
        _E, "a polygon has an odd number of coordinates", "redraw it", _ANNOTATION_GOES
    ),
    "polygon-number": Code(
        _E, "a polygon has coordinates that are no numbers", "redraw it", _ANNOTATION_GOES
    ),
    "polygon-far": Code(
        _E, "a polygon has absurd coordinates", "write them in pixels", _ANNOTATION_GOES
    ),
    "polygon-short": Code(
        _W, "a polygon has fewer than three points", "remove it", "that polygon removed"
    ),
    "mask-outside": Code(
        _E, "a polygon lies wholly outside the image", "redraw it", _ANNOTATION_GOES
    ),
    "mask-partly-outside": Code(
        _W, "a polygon leaves the image", "cut it at the border", "cut, as RLE"
    ),
    "crowd-polygon": Code(
        _W, "a crowd is given as polygons; COCO's tools want RLE", "encode it", "turned into RLE"
    ),
    "box-missing": Code(_W, "an annotation has no box", "add it", "taken from the mask"),
    "box-kind": Code(
        _E, "a box is not four finite numbers", "write x, y, width, height", "taken from the mask"
    ),
    "box-off": Code(
        _W, "a box disagrees with its mask", "take it from the mask", "taken from the mask"
    ),
    "area-off": Code(
        _W, "an area disagrees with its mask", "count the mask's pixels", "taken from the mask"
    ),
    "objects-none": Code(_W, "there are no objects to learn", "annotate some"),
    # --- panoptic ---
    "panoptic-entry": Code(
        _E, "a panoptic annotation lacks something", "give file_name, segments_info", _PNG_GOES
    ),
    "panoptic-entry-missing": Code(
        _E, "an image has no panoptic annotation", "add one, if only an empty one", _PNG_GOES
    ),
    "panoptic-entry-twice": Code(
        _E, "an image has several panoptic annotations", "leave one", "the first stays"
    ),
    "png-outside": Code(
        _E, "a PNG's file_name leaves the data folder", "write a path inside it", _PNG_GOES
    ),
    "png-missing": Code(_E, "a panoptic PNG is missing", "copy it there", _PNG_GOES),
    "png-damaged": Code(_E, "a panoptic PNG is damaged", "copy it again", _PNG_GOES),
    "png-mode": Code(_E, "a panoptic PNG is not RGB", "write it as RGB", _PNG_GOES),
    "png-size": Code(
        _E, "a panoptic PNG is of another size than its image", "write it at that size", _PNG_GOES
    ),
    "png-id-unknown": Code(
        _E, "a PNG has pixels of a segment the JSON file lacks", "add it", "those pixels void"
    ),
    "png-all-void": Code(_W, "a panoptic PNG is void all over", "annotate or remove the image"),
    "segment-entry": Code(
        _E, "a segment is not an entry with id and category_id", "write it again", "segment dropped"
    ),
    "segment-id": Code(
        _E,
        "a segment id is not a whole number from 1 to 2**24 - 1 (0 is void)",
        "number it anew",
        "segment dropped",
    ),
    "segment-id-twice": Code(
        _E, "two segments of an image have one id", "number one anew", "the first stays"
    ),
    "segment-no-pixels": Code(
        _W, "a segment has no pixel in the PNG", "remove it", "segment dropped"
    ),
    "segment-box-off": Code(
        _W, "a segment's box disagrees with the PNG", "take it from the PNG", "taken from the PNG"
    ),
    "segment-area-off": Code(
        _W, "a segment's area disagrees with the PNG", "count pixels", "taken from the PNG"
    ),
    # --- two JSON files of one split ---
    "instances-lack-image": Code(
        _E,
        "the panoptic file has an image the instances file lacks (or names otherwise)",
        "add it there with its objects",
        _PNG_GOES,
    ),
    "panoptic-lacks-image": Code(
        _W, "the instances file has an image the panoptic file lacks", "add it or remove it"
    ),
    "instances-lack-category": Code(
        _E, "the instances file lacks a thing category", "add it there", "category added"
    ),
    "categories-disagree": Code(
        _W, "the two files call one category id differently, or not a thing in both", "correct one"
    ),
    # --- two splits ---
    "split-same-image": Code(
        _E,
        "one image file is in two splits: the score would flatter the model",
        "remove it from one",
        "dropped from the first split",
    ),
    "split-similar-image": Code(
        _W, "two splits hold nearly the same picture", "keep such pictures in one split"
    ),
    "split-categories": Code(
        _E,
        "two splits have different categories",
        "write one list into both",
        "the categories of both written into both",
    ),
}
"""Every code with its meaning; codes are stable, texts may change."""
