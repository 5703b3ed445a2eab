terraform {
  # 1.11: the state's lock is a file beside it in S3, without a table.
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.20"
    }
  }

  # Bucket, key and region are given at `terraform init` (docs/infrastructure.md).
  backend "s3" {
    use_lockfile = true
    encrypt      = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = {
      project     = "mmbert-pipeline"
      environment = var.environment
    }
  }
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

locals {
  name    = "mmbert-${var.environment}"
  account = data.aws_caller_identity.current.account_id
}
