"""What a file, a folder of DICOM or a shard set holds, told and drawn."""
