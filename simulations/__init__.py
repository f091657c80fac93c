"""Many sites on one machine: in-process federation, data sources, judging, reports. May import all."""
