"""Chat with a model about images and videos: one session, shown in the terminal or in a web page."""
