"""The drawn world of the demo: scenes, their pictures and texts, written in the formats of the real sets.

scenes.py says what there is, drawing.py draws it, grammar.py, questions.py and alt_text.py put it into words, motion.py
and stories.py put it in sequence, writers write it to disk as the real sets lie there, pixel_reader.py reads pictures
back.
"""
