locals {
  # Each says what becomes of what is in it. Names are unique in all of AWS, hence the account.
  buckets = {
    artifacts = { versioned = true }
    mlflow    = { versioned = true }
    logs      = { versioned = false }
  }
}

resource "aws_s3_bucket" "main" {
  for_each = local.buckets

  bucket        = "${local.name}-${each.key}-${local.account}"
  force_destroy = false
}

resource "aws_s3_bucket_public_access_block" "main" {
  for_each = aws_s3_bucket.main

  bucket                  = each.value.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "main" {
  for_each = aws_s3_bucket.main

  bucket = each.value.id
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_versioning" "main" {
  for_each = { for name, bucket in local.buckets : name => bucket if bucket.versioned }

  bucket = aws_s3_bucket.main[each.key].id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "main" {
  for_each = aws_s3_bucket.main

  bucket = each.value.id
  rule {
    # A data key a bucket, not one an object: shards are many.
    bucket_key_enabled = true
    apply_server_side_encryption_by_default {
      # S3 delivers its own access logs under its own keys only.
      sse_algorithm     = each.key == "logs" ? "AES256" : "aws:kms"
      kms_master_key_id = each.key == "logs" ? null : aws_kms_key.main.arn
    }
  }
}

data "aws_iam_policy_document" "bucket" {
  for_each = aws_s3_bucket.main

  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [each.value.arn, "${each.value.arn}/*"]
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }

  dynamic "statement" {
    for_each = each.key == "logs" ? [1] : []
    content {
      sid       = "AccessLogs"
      actions   = ["s3:PutObject"]
      resources = ["${each.value.arn}/s3/*"]
      principals {
        type        = "Service"
        identifiers = ["logging.s3.amazonaws.com"]
      }
      condition {
        test     = "StringEquals"
        variable = "aws:SourceAccount"
        values   = [local.account]
      }
    }
  }
}

resource "aws_s3_bucket_policy" "main" {
  for_each = aws_s3_bucket.main

  bucket     = each.value.id
  policy     = data.aws_iam_policy_document.bucket[each.key].json
  depends_on = [aws_s3_bucket_public_access_block.main]
}

resource "aws_s3_bucket_logging" "main" {
  for_each = { for name, bucket in local.buckets : name => bucket if name != "logs" }

  bucket        = aws_s3_bucket.main[each.key].id
  target_bucket = aws_s3_bucket.main["logs"].id
  target_prefix = "s3/${each.key}/"
}

# An artifact stands until somebody deletes it; then it can be had back for a while. What a killed upload left, and
# curation's work in progress, go by themselves.
resource "aws_s3_bucket_lifecycle_configuration" "artifacts" {
  for_each = aws_s3_bucket_versioning.main

  bucket = each.value.bucket

  rule {
    id     = "noncurrent"
    status = "Enabled"
    filter {}
    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }
    expiration {
      expired_object_delete_marker = true
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }
  rule {
    id     = "work"
    status = "Enabled"
    filter {
      prefix = "artifacts/work/"
    }
    expiration {
      days = 30
    }
    noncurrent_version_expiration {
      noncurrent_days = 1
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "logs" {
  bucket = aws_s3_bucket.main["logs"].id

  rule {
    id     = "old"
    status = "Enabled"
    filter {}
    expiration {
      days = var.log_days
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }
}
