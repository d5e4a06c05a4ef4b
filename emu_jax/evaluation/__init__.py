"""What a trained Emu can do: scores on scenes never seen, and the page that shows them."""
