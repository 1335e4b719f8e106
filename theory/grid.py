"""Names of the arms of the proper-learning sweep."""

ARM_NAMES = ("two_stage", "offline_all", "offline_all_one_hot", "offline_matched", "offline_proper")
