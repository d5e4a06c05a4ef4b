"""Write self-contained HTML pages and charts."""
