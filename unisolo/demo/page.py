"""The page: controls on the left, the picture and what was found in it on the right."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any

import gradio as gr

from unisolo.demo.answers import Answers
from unisolo.demo.choice import Choice

__all__ = ["build_page", "look"]

_DEVICE = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"}
_NAMES = {"panoptic": "Everything", "instance": "Objects", "detection": "Boxes"}
_CACHE_AGE = 3600
_log = logging.getLogger("unisolo.demo")


def look() -> dict[str, Any]:
    """Theme and style sheet, as `launch` takes them: fonts of the reader's system, nothing else."""
    fonts = [gr.themes.utils.fonts.Font(name) for name in _FONTS]
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        radius_size="md",
        font=fonts,
        font_mono=[gr.themes.utils.fonts.Font(name) for name in _MONO],
    )
    return {"theme": theme, "css": _asset("page.css")}


_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def build_page(
    answers: Answers,
    checkpoint: Path,
    uploads: Path,
    examples: Sequence[Path],
    say: Callable[[str], None],
) -> Any:
    """Build the page.

    Args:
        answers: Answers the pictures.
        checkpoint: What is shown, for the header.
        uploads: The folder that uploads arrive in; pictures from elsewhere are refused.
        examples: Pictures to click on.
        say: Told each picture's size and time.

    Returns:
        The `gradio.Blocks`.
    """
    start = answers.start()
    desk = _Desk(answers, uploads, say)
    with gr.Blocks(
        title="unisolo",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(_CACHE_AGE, _CACHE_AGE),
    ) as page:
        key = gr.State(None, delete_callback=answers.store.drop)
        gr.HTML(_header(answers, checkpoint), elem_id="us-header")
        with gr.Row(elem_id="us-main"):
            with gr.Column(scale=0, min_width=340, elem_id="us-side"):
                picture = gr.Image(
                    label="Picture",
                    show_label=False,
                    type="filepath",
                    sources=["upload", "webcam", "clipboard"],
                    buttons=[],
                    height=230,
                    placeholder="Drop a picture here\nor click to choose one",
                    elem_id="us-input",
                )
                if examples:
                    gr.Examples(
                        [str(path) for path in examples], picture, label="Or try one of these"
                    )
                task, controls, stuff = _controls(answers, start)
            with gr.Column(scale=1, min_width=320, elem_id="us-stage"):
                viewer = gr.HTML(
                    None,
                    html_template=_asset("viewer.html"),
                    js_on_load=_asset("viewer.js"),
                    apply_default_css=False,
                    elem_id="us-viewer",
                )
        _connect(desk, picture, viewer, key, task, controls, stuff)
    return page


def _connect(
    desk: _Desk,
    picture: Any,
    viewer: Any,
    key: Any,
    task: Any,
    controls: Sequence[Any],
    stuff: Sequence[Any],
) -> None:
    """Say what happens on which event; one at a time, and of many moves of a slider the last."""
    inputs = [key, task, *controls]
    how = {"preprocess": False, "trigger_mode": "always_last", **_DEVICE}
    picture.change(
        desk.on_picture,
        [picture, *inputs],
        [key, viewer],
        show_progress="minimal",
        show_progress_on=viewer,
        **how,
    )
    gr.on(
        [task.change, *(control.input for control in controls)],
        desk.on_controls,
        inputs,
        viewer,
        show_progress="hidden",
        **how,
    )
    viewer.toggle(desk.on_toggle, inputs, viewer, show_progress="hidden", **how)
    task.change(
        lambda name: [gr.update(visible=name == "panoptic")] * len(stuff),
        task,
        stuff,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _controls(answers: Answers, start: Choice) -> tuple[Any, list[Any], list[Any]]:
    """Make the task switch, the sliders in the order of `Choice`, and those of panoptic alone."""
    task = gr.Radio(
        [(_NAMES.get(name, name), name) for name in answers.tasks],
        value=start.task,
        label="Find",
        elem_id="us-task",
    )
    score = gr.Slider(
        0.0, 1.0, start.min_score, step=0.01, label="Minimum score", elem_id="us-score", buttons=[]
    )
    free, panoptic = not answers.selection_is_fixed, start.task == "panoptic"
    mask, candidate = start.mask_threshold, start.candidate_threshold
    with gr.Accordion("More settings", open=False, elem_id="us-more"):
        masks = gr.Slider(
            minimum=min(0.05, mask),
            maximum=max(0.95, mask),
            value=mask,
            step=0.05,
            label="Mask threshold",
            info="Higher: tighter masks",
            visible=free,
            buttons=[],
        )
        candidates = gr.Slider(
            minimum=min(0.01, candidate),
            maximum=1.0,
            value=candidate,
            step=0.01,
            label="Candidate threshold",
            info="Lower: fainter objects are looked at; lower the score as well",
            visible=free,
            buttons=[],
        )
        overlap = gr.Slider(
            minimum=0.0,
            maximum=1.0,
            value=start.panoptic_overlap_threshold,
            step=0.05,
            label="Hidden share",
            info="Objects that others cover more than this are left out",
            visible=panoptic,
            buttons=[],
        )
        area = gr.Slider(
            minimum=0,
            maximum=max(16384, start.stuff_area_threshold),
            value=start.stuff_area_threshold,
            step=16,
            label="Smallest region",
            info="Regions with fewer pixels are left out",
            visible=panoptic,
            buttons=[],
        )
        if not free:
            gr.Markdown("The thresholds up to Matrix NMS are constants of this exported graph.")
    return task, [score, masks, candidates, overlap, area], [overlap, area]


class _Desk:
    """What happens on each event. Every answer is a state of the viewer, also when it fails."""

    def __init__(self, answers: Answers, uploads: Path, say: Callable[[str], None]) -> None:
        self._answers = answers
        self._uploads = uploads.resolve()
        self._say = say

    def on_picture(
        self, upload: dict[str, Any] | None, key: str | None, *values: Any
    ) -> tuple[str | None, dict[str, Any] | None]:
        """A picture came, or went (None)."""
        self._answers.store.drop(key)
        if upload is None:
            return None, None
        taken = None

        def answer() -> dict[str, Any]:
            nonlocal taken
            path = Path(str(upload["path"])).resolve()
            if self._uploads not in path.parents:
                raise ValueError("This picture was not uploaded here.")
            begin = perf_counter()
            taken = self._answers.take(path, Path(upload.get("orig_name") or path.name).name)
            shown = self._answers.show(taken, Choice(*values))
            height, width = shown["size"]
            self._say(f"picture {width} x {height}: {perf_counter() - begin:.2f} s")
            return shown

        state = self._guarded(answer)
        return taken, state

    def on_controls(self, key: str | None, *values: Any) -> Any:
        """A control moved."""
        if key is None:
            return gr.skip()
        return self._guarded(lambda: self._answers.show(key, Choice(*values)))

    def on_toggle(self, key: str | None, event: gr.EventData, *values: Any) -> Any:
        """Categories were switched on or off in the legend."""
        if key is None:
            return gr.skip()

        def answer() -> dict[str, Any]:
            kept = self._answers.store.get(key)
            kept.hidden = frozenset(int(number) for number in event.hidden)
            return self._answers.show(key, Choice(*values))

        return self._guarded(answer)

    def _guarded(self, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return answer()
        except (ValueError, TypeError, OSError) as error:
            return {"problem": str(error)}
        # Whatever else fails, out of memory above all, the page stays in use.
        except Exception as error:
            _log.exception("a picture could not be answered")
            return {
                "problem": f"This picture could not be answered ({type(error).__name__}); the "
                "server's output says more."
            }


def _header(answers: Answers, checkpoint: Path) -> str:
    predictor = answers.predictor
    categories = predictor.categories
    parent = f"{checkpoint.parent.name}/" if checkpoint.parent.name else ""
    facts = [
        f"{parent}{checkpoint.name}",
        f"{len(categories)} categories",
        f"on {predictor.device}",
    ]
    chips = "".join(f"<span>{html.escape(fact)}</span>" for fact in facts)
    return f'<div class="us-brand">{_asset("icon.svg")}<b>unisolo</b></div><div>{chips}</div>'


def _asset(name: str) -> str:
    return (files("unisolo.demo") / "assets" / name).read_text(encoding="utf-8")
