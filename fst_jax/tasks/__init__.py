"""x and r: problems, how to ask them, and how to judge an answer in numbers and words."""
