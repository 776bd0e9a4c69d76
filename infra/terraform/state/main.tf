# The bucket for a state that several people share, made once, before everything else:
#   terraform -chdir=infra/terraform/state init
#   terraform -chdir=infra/terraform/state apply -var=aws_region=us-east-1 -var=cluster_name=mlops-cluster
#   terraform -chdir=infra/terraform/state output -raw backend > infra/terraform/backend_override.tf
#   terraform -chdir=infra/terraform init -migrate-state
terraform {
  required_version = ">= 1.11.0"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

provider "aws" {
  region = var.aws_region

  default_tags {
    tags = { project = "mlops-forge", cluster = var.cluster_name, managed-by = "terraform" }
  }
}

variable "aws_region" {
  description = "Region of the state."
  type        = string
}

variable "cluster_name" {
  description = "The cluster whose state is kept."
  type        = string
}

data "aws_caller_identity" "current" {}

resource "aws_kms_key" "state" {
  #checkov:skip=CKV2_AWS_64:Without a policy of its own a key has AWS's default: the account gives access by IAM.
  description             = "${var.cluster_name}: Terraform's state"
  enable_key_rotation     = true
  deletion_window_in_days = 30
}

resource "aws_s3_bucket" "state" {
  #checkov:skip=CKV_AWS_144:Every version of the state is kept; a second region is a choice of whoever needs it.
  #checkov:skip=CKV2_AWS_62:Nothing waits for events of this bucket.
  #checkov:skip=CKV_AWS_18:Read and written by Terraform only; CloudTrail's data events tell more than access logs.
  bucket = "${var.cluster_name}-state-${data.aws_caller_identity.current.account_id}"

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_versioning" "state" {
  bucket = aws_s3_bucket.state.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "state" {
  bucket = aws_s3_bucket.state.id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.state.arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "state" {
  bucket                  = aws_s3_bucket.state.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_lifecycle_configuration" "state" {
  bucket = aws_s3_bucket.state.id

  rule {
    id     = "remnants"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }

    noncurrent_version_expiration {
      noncurrent_days = 365
    }
  }

  depends_on = [aws_s3_bucket_versioning.state]
}

output "backend" {
  description = "What makes infra/terraform keep its state there, with a lock."
  value       = <<-EOT
    terraform {
      backend "s3" {
        bucket       = "${aws_s3_bucket.state.bucket}"
        key          = "${var.cluster_name}.tfstate"
        region       = "${var.aws_region}"
        encrypt      = true
        kms_key_id   = "${aws_kms_key.state.arn}"
        use_lockfile = true
      }
    }
  EOT
}
