"""Detection of labels that differ in spaces or Unicode form only, and are probably the same entity."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

from distkg.data.readers.problems import Problems

WARNING = "labels_that_differ_in_spaces_or_unicode_form"
CHUNK = 1 << 18
# Printable ASCII without spaces at the ends or two in a row is already in plain form.
_MAY_CHANGE = r"[^\x20-\x7e]|^ | $|  "
_INVISIBLE = r"[\x{ad}\x{200b}-\x{200f}\x{202a}-\x{202e}\x{2060}-\x{2064}\x{2066}-\x{2069}\x{feff}\x{fe0e}\x{fe0f}]+"
_SPACES = r"[\x00-\x20\x7f-\x{a0}\p{Z}]+"


def plain_forms(labels: pa.Array) -> pa.Array:
    """Normalise labels: Unicode form NFKC, no invisible characters, single spaces, none at the ends."""
    visible = pc.replace_substring_regex(pc.utf8_normalize(labels, form="NFKC"), _INVISIBLE, "")
    return pc.utf8_trim(pc.replace_substring_regex(visible, _SPACES, " "), " ")


def warn_of_forms(labels: pa.Array, problems: Problems) -> None:
    """Count labels (large_utf8 [n], distinct) whose plain form equals that of an earlier one; nothing is merged.

    Extra memory is bounded by the labels that are not in plain form.
    """
    changed, forms = _changed(labels)
    if not len(changed):
        return
    # Of two labels with equal form, at least one differs from the form.
    twins = pa.concat_arrays([changed, _among(labels, forms)])
    keys = pa.concat_arrays([forms, twins.slice(len(changed))])
    table = pa.table({"key": keys, "label": twins}).group_by("key").aggregate([("label", "list")])
    groups = table.filter(pc.greater(pc.list_value_length(table["label_list"]), 1))
    if groups.num_rows:
        count = len(pc.list_flatten(groups["label_list"])) - groups.num_rows
        first = min(sorted(group) for group in groups["label_list"].slice(0, 1000).to_pylist())
        problems.note(WARNING, " and ".join(shown(label) for label in first[:2]), count)


def shown(label: str) -> str:
    """Return a label with invisible and ambiguous characters escaped."""
    plain = unicodedata.normalize("NFC", label) == label == unicodedata.normalize("NFKC", label)
    return repr(label) if plain and not any(unicodedata.combining(character) for character in label) else ascii(label)


def _changed(labels: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return the labels that are not in plain form, and their plain forms."""
    changed_labels = [labels.slice(0, 0)]
    forms = [labels.slice(0, 0)]
    for start in range(0, len(labels), CHUNK):
        part = labels.slice(start, CHUNK)
        part = part.filter(pc.match_substring_regex(part, _MAY_CHANGE))
        form = plain_forms(part)
        differs = pc.not_equal(part, form)
        changed_labels.append(part.filter(differs))
        forms.append(form.filter(differs))
    return pa.concat_arrays(changed_labels), pa.concat_arrays(forms)


def _among(labels: pa.Array, forms: pa.Array) -> pa.Array:
    """Return the labels that occur among the forms."""
    unique_forms = pc.unique(forms)
    parts = [labels.slice(start, CHUNK) for start in range(0, len(labels), CHUNK)]
    return pa.concat_arrays(
        [labels.slice(0, 0), *(part.filter(pc.is_in(part, value_set=unique_forms)) for part in parts)]
    )
