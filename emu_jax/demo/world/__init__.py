"""The synthetic shapes world of the demo: scenes, their images and texts, written in the formats of the real sets.

scenes.py defines the scenes, rendering.py draws them, grammar.py, questions.py and alt_text.py describe them in words,
motion.py and stories.py put them in sequences, writers.py writes the layouts of the real sets, classifier.py recovers
a scene from its pixels.
"""
