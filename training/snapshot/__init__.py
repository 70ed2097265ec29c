"""Networks that reconstruct snapshots of a coded-aperture spectrometer: what they learn, and how they are judged."""
