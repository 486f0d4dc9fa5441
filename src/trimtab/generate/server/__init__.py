"""A local server that speaks the OpenAI interface."""

from __future__ import annotations

from trimtab.generate.server.application import ServerSettings as ServerSettings
from trimtab.generate.server.application import build_application as build_application
from trimtab.generate.server.application import serve as serve
