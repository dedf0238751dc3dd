"""From run folders to figures, claims and one HTML page; nothing here trains or loads a model."""
