"""The live view: what runs do, on whatever screen there is."""

from rapidfireai.live.layout import format_s
from rapidfireai.live.view import message_handler, progress_view

__all__ = ["format_s", "message_handler", "progress_view"]
