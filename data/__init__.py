"""The clips that models are trained on: generated, read from a folder, filtered, encoded; and pictures in and out."""
