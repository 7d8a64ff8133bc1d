"""Exercises beside the paper: functions of the project to write again, each certified by experiments."""

from exercises import section_3_1, section_3_2, section_3_3, section_4  # each fills its part of the list
