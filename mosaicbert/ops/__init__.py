"""Operations of the encoder.

Each file contains a PyTorch reference, faster implementations, and a public function that selects one by device.
"""
