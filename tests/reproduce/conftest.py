"""The experiments that behave well and badly."""

from published import fake_systems as fake_systems
