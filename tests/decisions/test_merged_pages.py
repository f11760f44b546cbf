"""Several /metrics pages as one: every sample is there once, and says whose it is."""

from __future__ import annotations

from deepinfer.control_plane.gateway.merged_pages import merged

FIRST = b"""# HELP requests_total Requests {all}.
# TYPE requests_total counter
requests_total{model="a, {b}",status="200"} 3.0
requests_total{model="c",status="200"} 1.0
# HELP seconds Time.
# TYPE seconds histogram
seconds_bucket{le="+Inf"} 4.0
seconds_sum 0.5
"""
SECOND = b"""# HELP seconds Time.
# TYPE seconds histogram
seconds_bucket{le="+Inf"} 2.0
seconds_sum 0.25
# HELP open_files Files.
# TYPE open_files gauge
open_files 7.0
"""
BOTH = b"""# HELP requests_total Requests {all}.
# TYPE requests_total counter
requests_total{gateway="0",model="a, {b}",status="200"} 3.0
requests_total{gateway="0",model="c",status="200"} 1.0
# HELP seconds Time.
# TYPE seconds histogram
seconds_bucket{gateway="0",le="+Inf"} 4.0
seconds_sum{gateway="0"} 0.5
seconds_bucket{gateway="2",le="+Inf"} 2.0
seconds_sum{gateway="2"} 0.25
# HELP open_files Files.
# TYPE open_files gauge
open_files{gateway="2"} 7.0
"""


def test_each_family_is_told_once_with_the_samples_of_all() -> None:
    assert merged({2: SECOND, 0: FIRST}) == BOTH
