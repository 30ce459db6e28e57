"""What all other packages use: the settings, the job and its states, the job store and its encoding, fetching."""
