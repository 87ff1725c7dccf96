"""Faults that real files, options, disks and processes bring, in numbers; `make faults` tries them all."""
