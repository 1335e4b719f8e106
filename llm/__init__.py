"""The same comparisons on language models (torch); theory is seen only through files."""
