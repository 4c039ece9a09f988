"""Carry tuned Settings to a full-size Shape, in the formats that trainers read."""
