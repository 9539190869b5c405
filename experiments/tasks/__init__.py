"""What a run is trained to do: its loss, its metrics, its data, and what it costs."""
