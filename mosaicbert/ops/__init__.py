"""One file per operation: its definition, its fast versions, and the public function that chooses by device."""
